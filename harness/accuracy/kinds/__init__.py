"""The kinds of accuracy suites: one file each, with all that a kind is."""
