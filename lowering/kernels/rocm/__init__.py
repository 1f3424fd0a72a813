"""Our kernels for AMD GPUs."""
