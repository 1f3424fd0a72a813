"""Records: one run, one JSON file, and what reads it."""
