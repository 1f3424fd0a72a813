"""Kernels of our own: packed products in the `vector` dialect, embedded in IREE modules."""
