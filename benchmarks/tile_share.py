"""How a product's time falls with the share of its weight's tiles that are 2:4, beside a line.

    python benchmarks/tile_share.py --json FILE

Five weights of one shape, of which 0, 25, 50, 75 and 100% of the tiles are 2:4, are multiplied in
turn.  Through their medians goes the straight line of least squares, and through the bytes that
each stores: the second is what the first can be where memory is the limit.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trinity.harness.bench.layers import iree_product
from trinity.harness.latency import machine, timing
from trinity.harness.records.environment import environment
from trinity.harness.statistics import intervals
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.module.random_weights import random_weight
from trinity.methods.formats import NM, Floats, Tiles, WeightFormat

SHARES = (0, 25, 50, 75, 100)  # percent of the tiles that are 2:4


def main() -> None:
    """Time, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], help="out and in")
    parser.add_argument("--rows", type=int, default=1, help="rows of the input, M")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu", default=cpus.HOST, help="whose instructions are used")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shape = (asked.shape[0], asked.shape[1])
    with machine.watched() as seen:
        sizes, samples = timed(shape, asked.rows, asked.dtype, asked.cpu, asked.repeats)
    print(table(sizes, samples))
    if asked.json:
        details = {"shape": asked.shape, "rows": asked.rows, "dtype": asked.dtype, "cpu": asked.cpu}
        found = {"shares_percent": SHARES, "stored_bytes": sizes, "samples_s": samples}
        about = {"machine": machine.describe() | dict(seen), "environment": environment()}
        write_json(asked.json, {"schema": "tile-share/1", **details, **found, **about})


def format_at(share: int, shape: tuple[int, int], dtype: str) -> WeightFormat:
    """Of a weight with so many percent of its tiles 2:4."""
    ends = {0: None, 100: NM(2, 4)}
    pattern = ends[share] if share in ends else Tiles(share / 100)
    return WeightFormat(shape, Floats(dtype), pattern)


def timed(
    shape: tuple[int, int], rows: int, dtype: str, cpu: str, repeats: int
) -> tuple[list[int], list[list[float]]]:
    """Bytes of each weight, and seconds of its products, a list for each share."""
    x, make = torch.randn(rows, shape[1]), iree_product("llvm-cpu", cpu)
    formats = [format_at(share, shape, dtype) for share in SHARES]
    products = [make(of, random_weight(of), x) for of in formats]
    for product in products:
        timing.warm_up(product.run)
    calls = [product.seconds for product in products]
    return [p.read_bytes for p in products], timing.interleaved(calls, warmup=0, repeats=repeats)


def line(values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The line of least squares at each share, and how far a value is off it, as a share of it."""
    slope, start = np.polyfit(SHARES, np.asarray(values, float), 1)
    on_line = start + slope * np.array(SHARES)
    return on_line, np.asarray(values, float) / on_line - 1


def table(sizes: Sequence[int], samples: Sequence[Sequence[float]]) -> str:
    """Markdown.  sizes: bytes of each share   samples: seconds of each"""
    milliseconds = [1e3 * np.array(of) for of in samples]
    medians = [float(np.median(of)) for of in milliseconds]
    on_line, off = line(medians)
    _, bytes_off = line(sizes)
    rows = [
        "| 2:4 tiles | stored MB | ms | on the line, ms | off the line |",
        "|---:|---:|---:|---:|---:|",
    ]
    for i, share in enumerate(SHARES):
        interval = intervals.median_interval(milliseconds[i])
        about = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
        cells = f"{sizes[i] / 1e6:.2f} | {medians[i]:.3f}{about} | {on_line[i]:.3f} | {off[i]:+.1%}"
        rows.append(f"| {share}% | {cells} |")
    rows.append("")
    rows.append(
        f"Largest distance from the line: {np.abs(off).max():.1%} of time, "
        f"{np.abs(bytes_off).max():.1%} of bytes. All 2:4 takes {medians[-1] / medians[0]:.2f} of "
        f"the time of all dense, and {sizes[-1] / sizes[0]:.2f} of its bytes."
    )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
