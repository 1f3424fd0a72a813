"""MLIR as text: one function, dialects, parsing and verification."""
