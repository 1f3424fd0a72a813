"""Processor time of products in the kernels of several kinds of processors, one thread.

Weights are small enough for the second-level cache, and what is counted is the processor's time and
not the clock's: what the instructions take, on a machine that does other things too.  Bytes from
memory are not in it; `kernels.py` times those, on an idle machine.

    python -m benchmarks.kernel_cpu_time --cpus host x86-64-v3 alderlake --json FILE
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import formats
from trinity.harness.bench import layers
from trinity.harness.records.environment import environment
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.kernels.cpu.flavour import instructions_of
from trinity.lowering.module.random_weights import random_weight

SHAPE = (512, 4096)
ENOUGH_S = 0.02  # of one sample


def main() -> None:
    """Time every product in turn, and print or write the samples."""
    options = parse()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    layers.ROTATED_BYTES = 1 << 19  # one copy
    x, products = torch.randn(options.rows, SHAPE[1]), {}
    for name in options.products:
        weight_format = formats(SHAPE)[name]
        weight = random_weight(weight_format)
        for cpu in options.cpus:
            products[name, cpu] = layers.iree_product("llvm-cpu", cpu)(weight_format, weight, x)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in products}
    for _ in range(options.repeats):
        for key, product in products.items():
            samples[key].append(seconds(product))
    rows = []
    for (name, cpu), found in samples.items():
        flavour = instructions_of(cpus.get(cpu)).flavour
        least, median = min(found) * 1e6, statistics.median(found) * 1e6
        print(f"{name:20} {flavour:12} least {least:6.0f} us, median {median:6.0f} us")
        rows.append({"product": name, "cpu": cpu, "flavour": flavour, "seconds": found})
    if options.json:
        record = {"schema": "kernel-cpu-time/1", "shape": list(SHAPE), "rows": options.rows}
        write_json(options.json, {**record, "environment": environment(), "products": rows})


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A row a product, a column a flavour and number of rows: the least and the median time."""
    found: dict[str, list[str]] = {}
    heads = ["product"]
    for record in records:
        for timed in record["products"]:
            head = f"{timed['flavour']}, M = {record['rows']}"
            heads += [] if head in heads else [head]
            least, median = min(timed["seconds"]), statistics.median(timed["seconds"])
            cell = f"{least * 1e6:.0f}, {median * 1e6:.0f}"
            found.setdefault(timed["product"], [timed["product"]]).append(cell)
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in found.values())]) + "\n"


def seconds(product: layers.Product) -> float:
    """Processor time of one product, the mean of some."""
    product.run()
    count, start = 0, time.process_time()
    while time.process_time() - start < ENOUGH_S:
        product.run()
        count += 1
    return (time.process_time() - start) / count / product.calls


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpus", nargs="+", default=["host", "x86-64-v3"])
    parser.add_argument("--products", nargs="+", default=["int4", "2:4 int4", "50% int4"])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
