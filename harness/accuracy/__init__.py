"""Accuracy: perplexity and zero-shot tasks."""
