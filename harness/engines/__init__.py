"""What a suite measures: one protocol, however the model runs."""
