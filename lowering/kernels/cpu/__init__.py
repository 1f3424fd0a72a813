"""Kernels of our own for processors, in the `vector` dialect."""
