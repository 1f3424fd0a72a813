"""Where modules run, and what this machine's processor can do."""
