"""From a compressed model to MLIR, to an IREE module, to something that can be called."""
