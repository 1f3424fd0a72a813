"""Compressed checkpoints: one block, the whole, in torch, as others read it."""
