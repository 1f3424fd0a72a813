"""A paper's tables, regenerated."""
