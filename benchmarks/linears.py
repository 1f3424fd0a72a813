"""Rates of float32 linears by torch's own library and by oneDNN, in turn: which should read text?

    python benchmarks/linears.py --json FILE

`harness/records/products.py` lets oneDNN do it where the processor has AVX-512 that MKL does not
use.  The shapes are those of a small and of a large model; 1 row is a decoded token, for which
torch is left as it is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from trinity.harness.latency import machine, timing
from trinity.harness.records import products
from trinity.harness.records.environment import environment
from trinity.harness.records.products import OneDnn
from trinity.harness.statistics import intervals
from trinity.harness.store.stages import write_json

SHAPES = ((1536, 576), (576, 1536), (49152, 576), (4096, 4096))  # [out, in]
ROWS = (1, 64, 512)


def main() -> None:
    """Time, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print(f"here `fastest` chooses {products.library()}\n")
    print("| out x in | rows | torch's own, GFLOP/s | oneDNN, GFLOP/s | faster |")
    print("|---|---:|---:|---:|---|")
    found = {}
    with machine.watched() as seen, torch.inference_mode():
        for out, d_in in SHAPES:
            for rows in ROWS:
                ways = timed(rows, out, d_in, asked.repeats)
                found[f"{rows} x {d_in} x {out}"] = ways
                print(row(rows, out, d_in, *map(np.array, ways)))
    if asked.json:
        about = {"machine": machine.describe() | dict(seen), "environment": environment()}
        details = {"chosen": products.library(), "samples_s": found}
        write_json(asked.json, {"schema": "linears/1", **details, **about})


def timed(rows: int, out: int, d_in: int, repeats: int) -> list[list[float]]:
    """Seconds of one product by torch's own library, and by oneDNN."""
    x, weight = torch.randn(rows, d_in), torch.randn(out, d_in)

    def own() -> float:
        return timing.back_to_back(lambda: functional.linear(x, weight))

    def other() -> float:
        with OneDnn():
            return timing.back_to_back(lambda: functional.linear(x, weight))

    for call in (own, other):
        timing.warm_up(call)
    return timing.interleaved([own, other], warmup=0, repeats=repeats)


def row(rows: int, out: int, d_in: int, own: np.ndarray, other: np.ndarray) -> str:
    """A line of the table: rates, and the ratio of the times with its 95% interval."""
    work = 2 * rows * out * d_in / 1e9
    rates = f"{work / np.median(own):.0f} | {work / np.median(other):.0f}"
    ratio = intervals.median_interval(own / other)
    spread = f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""
    return f"| {out} x {d_in} | {rows} | {rates} | {np.median(own / other):.2f}x{spread} |"


if __name__ == "__main__":
    main()
