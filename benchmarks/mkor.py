"""What MKOR costs beside the optimizer it wraps, by the width of a linear.

    python benchmarks/mkor.py --json FILE

One linear of d x d.  Timed in turn, in one process: SGD with momentum alone, a step of MKOR that
only preconditions (two products, 4 d^3 operations), and one that also updates both factors (two
products of a matrix and a vector and two outer products, 10 d^2 multiply-adds).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trinity.harness.latency import ceilings, machine, timing
from trinity.harness.records.environment import environment
from trinity.harness.statistics import intervals
from trinity.harness.store.stages import write_json
from trinity.methods.training.mkor import Mkor, MkorOptions

NEVER = 10**9  # steps between two updates


def main() -> None:
    """Time, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rate = ceilings.measured().products("float32")
    print(f"products reach {rate / 1e9:.0f} GFLOP/s")
    print("| d | SGD, ms | + preconditioning, ms | its products alone, ms | + update, ms |")
    print("|---:|---:|---:|---:|---:|")
    found = {}
    for d in asked.sizes:
        samples = timed(d, asked.repeats)
        found[d] = samples
        sgd, only, both = (np.array(of) for of in samples.values())
        floor = f"{1e3 * 4 * d**3 / rate:.2f}"
        print(f"| {d} | {cell(sgd)} | {cell(only - sgd)} | {floor} | {cell(both - only)} |")
    if asked.json:
        details = {"samples_s": found, "rate": rate, "machine": machine.describe()}
        write_json(asked.json, {"schema": "mkor-cost/1", **details, "environment": environment()})


def cell(seconds: NDArray[np.float64]) -> str:
    """Median in milliseconds, with its 95% interval.  seconds: [repetitions], or paired gaps"""
    interval = intervals.median_interval(1e3 * seconds)
    assert interval is not None
    return f"{1e3 * np.median(seconds):.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def timed(d: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step, each repetition; gradients are there already."""
    steps = {"sgd": None, "preconditions": NEVER, "updates": 1}
    calls = []
    for interval in steps.values():
        linear = nn.Linear(d, d, bias=False)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            linear.parameters(), lr=1e-3, momentum=0.9
        )
        if interval is not None:
            optimizer = Mkor(linear, optimizer, MkorOptions(interval=interval))
        linear(torch.randn(8, d)).square().mean().backward()
        optimizer.step()  # makes momentum and the first update
        calls.append(one_step(linear, optimizer))
    for call in calls:
        call()
    runs = timing.interleaved(calls, warmup=2, repeats=repeats)
    return dict(zip(steps, runs, strict=True))


def one_step(linear: nn.Linear, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Seconds of a step, after a backward pass that is not timed."""

    def run() -> float:
        optimizer.zero_grad()
        linear(torch.randn(8, linear.in_features)).square().mean().backward()
        return timing.timed(optimizer.step).seconds

    return run


if __name__ == "__main__":
    main()
