"""What runs on a GPU machine: it needs the IREE runtime, NumPy and torch, and no compiler.

`benchmarks/gpu/build.py` packs it with the packages `lowering` and `methods` into one file,
`first_day.pyz`.
"""
