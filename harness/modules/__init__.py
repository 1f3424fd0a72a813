"""A compressed checkpoint as a compiled, verified module."""
