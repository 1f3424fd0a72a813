"""The latency and memory suites of one checkpoint."""
