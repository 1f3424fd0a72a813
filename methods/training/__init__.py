"""Optimizers and other mathematics of training, usable with plain PyTorch."""
