"""A Hugging Face model folder: its family, configuration, files and blocks."""
