"""A checkpoint of any program, read from its files: what it stores, and which layers are wrong."""
