"""The three products of a linear that SLoPe trains, beside dense ones: seconds, in turn.

    python benchmarks/slope_products.py --json FILE

    forward          Y  = X W^T              W is 2:4 along the inputs: zero outside R
    input gradient   dX = dY (W * R * C)     at most 2:4 along the outputs, so W^T is 2:4 packed
    weight gradient  dW = (dY^T X) * R       a dense product, then a mask

`dense` has no mask, and is what `trinity train` runs forward.  `masked` is what it runs backward: a
mask is multiplied in, before torch's dense product or after it.  `packed` are this project's
kernels on the stored halves, which serve a checkpoint; training does not use them, because a weight
would be packed again at every step.
"""

import argparse
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trinity.harness.bench.layers import Product, iree_product
from trinity.harness.latency import machine, timing
from trinity.harness.records.environment import environment
from trinity.harness.statistics import intervals
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.cpu import cpus
from trinity.methods.formats import NM, Dense, Sparse, format_of
from trinity.methods.tensors import nm_mask
from trinity.methods.training.slope import double_mask, random_mask

TWO_FOUR = NM(2, 4)
Ways = dict[str, Callable[[], float]]


def main() -> None:
    """Time, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], help="out and in")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 128], help="tokens of a step")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu", default=cpus.HOST, help="whose instructions the kernels use")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shape, found = (asked.shape[0], asked.shape[1]), {}
    with machine.watched() as seen:
        for rows in asked.rows:
            found[rows] = timed(shape, rows, asked.cpu, asked.repeats)
    print(table(found))
    if asked.json:
        about = {"machine": machine.describe() | dict(seen), "environment": environment()}
        details = {"shape": asked.shape, "cpu": asked.cpu, "samples_s": found}
        write_json(asked.json, {"schema": "slope-products/1", **details, **about})


class Layer:
    """A weight with its masks.  W: float32 [out, in], zero outside R   R, RC: bool [out, in]"""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Random numbers, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        self.R = random_mask(shape, TWO_FOUR, generator)
        self.W = torch.randn(shape, generator=generator) * self.R
        self.RC = double_mask(self.W, self.R, TWO_FOUR)

    def forward_weight(self) -> Sparse:
        """[out, in], 2:4 along the inputs."""
        return Sparse(Dense(self.W), self.R, TWO_FOUR)

    def backward_weight(self) -> Sparse:
        """[in, out], 2:4 along the outputs: what C keeps, entries that R removed as zeros."""
        twice = (self.W * self.RC).T.contiguous()
        return Sparse(Dense(twice), nm_mask(twice.abs(), TWO_FOUR), TWO_FOUR)


def packed(weight: Sparse, x: Tensor, cpu: str) -> Product:
    """x times the weight's transpose, in the kernels."""
    return iree_product("llvm-cpu", cpu)(format_of(weight), weight, x)


def timed(
    shape: tuple[int, int], rows: int, cpu: str, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each way of each product."""
    layer, found = Layer(shape), {}
    X, dY = torch.randn(rows, shape[1]), torch.randn(rows, shape[0])
    for name, ways in products(layer, X, dY, cpu).items():
        for call in ways.values():
            timing.warm_up(call)
        runs = timing.interleaved(list(ways.values()), warmup=0, repeats=repeats)
        found[name] = dict(zip(ways, runs, strict=True))
    return found


def products(layer: Layer, X: Tensor, dY: Tensor, cpu: str) -> dict[str, Ways]:
    """What is timed: seconds of one product.  X: [rows, in]   dY: [rows, out]"""
    # As many copies as exceed the caches: a model that has run its other layers finds none there.
    copies = max(1, -(-(256 << 20) // layer.W.nbytes))
    weights = cycle([layer.W.clone() for _ in range(copies)])
    forward, backward = (
        packed(layer.forward_weight(), X, cpu),
        packed(layer.backward_weight(), dY, cpu),
    )
    return {
        "forward": {
            "dense": _seconds(lambda: X @ next(weights).T),
            "packed": forward.seconds,
        },
        "input gradient": {
            "dense": _seconds(lambda: dY @ next(weights)),
            "masked": _seconds(lambda: dY @ (next(weights) * layer.RC)),
            "packed": backward.seconds,
        },
        "weight gradient": {
            "dense": _seconds(lambda: dY.T @ X),
            "masked": _seconds(lambda: (dY.T @ X) * layer.R),
        },
    }


def _seconds(run: Callable[[], object]) -> Callable[[], float]:
    return lambda: timing.back_to_back(run)


def table(found: dict[int, dict[str, dict[str, list[float]]]]) -> str:
    """Markdown: milliseconds with 95% intervals, and the time of dense over each."""
    lines = ["| tokens | product | way | ms | faster than dense |", "|---:|---|---|---:|---:|"]
    for rows, of_rows in found.items():
        for name, ways in of_rows.items():
            dense = np.array(ways["dense"])
            for way, samples in ways.items():
                milliseconds = 1e3 * np.array(samples)
                interval = intervals.median_interval(milliseconds)
                about = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
                ratio = np.median(dense) / np.median(samples)
                cells = f"{np.median(milliseconds):.3f}{about} | {ratio:.2f}"
                lines.append(f"| {rows} | {name} | {way} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
