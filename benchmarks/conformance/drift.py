"""How far apart two right implementations may end: whole models whose roundings alone differ.

    python benchmarks/conformance/drift.py [--orders N] [--json FILE]

A method's statistics are sums over calibration sequences, so their order changes nothing but how
sums are rounded.  Each case is computed for several random orders of the same sequences; what their
perplexities spread by is what a ratio between two implementations may be without meaning anything.
"""

import argparse
import hashlib
import statistics
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from given import run_of
from torch import Tensor

from trinity.harness.progress import Reporter
from trinity.harness.quiet import hush_libraries
from trinity.harness.records.environment import environment
from trinity.harness.run import Run
from trinity.harness.store import StageStore, default_root, write_json

COMPARED = ("gptq", "sparsegpt-2of4")  # whose whole models differ from those of others


class Reordered(Run):
    """A run whose calibration sequences come in another order."""

    def __init__(self, run: Run, seed: int) -> None:
        """run: in the first order   seed: of the order; 0 is the first one"""
        super().__init__(run.recipe, StageStore(default_root()), Reporter())
        self.first, self.seed = run, seed

    @cached_property
    def calibration(self) -> tuple[Tensor, dict[str, Any]] | None:
        """Ids [samples, seqlen] and how they came about."""
        assert self.first.calibration is not None
        ids, described = self.first.calibration
        if self.seed:
            order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.seed))
            ids = ids[order].contiguous()
        digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        return ids, {**described, "ids_sha256": digest, "order": self.seed}


def measure(orders: int) -> dict[str, dict[str, list[float]]]:
    """Values of every accuracy measurement by case and name, one an order."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in COMPARED:
        first = run_of(case)
        for seed in range(orders):
            print(f"{case}: order {seed + 1} of {orders}", file=sys.stderr)
            for m in Reordered(first, seed).finish().record.measurements:
                if m.value is not None:
                    found.setdefault(case, {}).setdefault(m.name, []).append(m.value)
    return found


def main() -> None:
    """A Markdown table on stdout, a record in --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    options = parser.parse_args()
    hush_libraries()
    torch.set_grad_enabled(False)
    found = measure(options.orders)
    print("| case | measured | least | median | largest | largest to least |")
    print("|---|---|---:|---:|---:|---:|")
    for case, by_name in found.items():
        for name, values in by_name.items():
            middle, ratio = statistics.median(values), max(values) / min(values)
            ends = f"{min(values):.2f} | {middle:.2f} | {max(values):.2f}"
            print(f"| {case} | {name} | {ends} | {ratio:.3f} |")
    if options.json:
        command = f"python benchmarks/conformance/drift.py --orders {options.orders}"
        data = {
            "schema": "conformance-drift/1",
            "command": command,
            "cases": {case: CASES[case] for case in COMPARED},
            "values": found,
            "environment": environment(),
        }
        write_json(options.json, data)


if __name__ == "__main__":
    main()
