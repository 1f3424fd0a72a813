"""Kernels of our own for NVIDIA GPUs: CUDA sources, the PTX made of them, storage and calls."""
