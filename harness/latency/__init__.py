"""Latency and memory: every clock in the project is here."""
