"""Independent references in float64: plain loops, exhaustive search, numpy's linear algebra.

They import nothing of the project: each is written from the definition, never from the code that it
judges, and is as slow as it is plain.
"""
