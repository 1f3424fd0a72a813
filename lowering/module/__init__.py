"""Storage IR to a module, its calls, and the proof that it computes the same."""
