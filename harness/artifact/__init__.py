"""What others get of a set of runs: an artifact for reviewers, a card for a model's page."""
