"""Kernels of one source for NVIDIA's and AMD's GPUs: an output a lane, in float32."""
