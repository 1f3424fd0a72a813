"""A Hugging Face hub on this machine: its protocol, real layouts, faults on demand."""
