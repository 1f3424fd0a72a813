"""Example of a package that adds methods to Trinity."""
