"""The command line, one small file a command; each imports what it needs when it runs."""
