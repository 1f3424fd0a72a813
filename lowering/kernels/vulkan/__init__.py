"""Kernels of our own for Vulkan: GLSL sources, the SPIR-V made of them, storage and calls."""
