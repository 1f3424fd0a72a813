"""The Hugging Face hub: models and data sets by their commit, and why it refuses."""
