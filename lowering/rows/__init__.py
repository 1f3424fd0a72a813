"""The compiler's own storage of a weight, row by row, and its product."""
