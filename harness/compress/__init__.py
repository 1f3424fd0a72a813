"""From a dense model to compressed blocks."""
