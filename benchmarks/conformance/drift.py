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
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from compare import same
from given import run_of
from torch import Tensor

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.records.environment import environment
from trinity.harness.runs.run import Run
from trinity.harness.store.once import once
from trinity.harness.store.stages import StageStore, default_root, write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.terminal.progress import Reporter
from trinity.methods.formats import CompressedWeight

COMPARED = ("gptq", "sparsegpt-2of4")  # whose whole models differ from those of others


class Reordered(Run):
    """A run whose calibration sequences come in another order."""

    def __init__(self, run: Run, seed: int) -> None:
        """run: in the first order   seed: of the order; 0 is the first one"""
        super().__init__(run.recipe, StageStore(default_root()), Reporter())
        self.first, self.seed = run, seed

    @once
    def draw_calibration(self) -> tuple[Tensor, dict[str, Any]] | None:
        """Ids [samples, seqlen] and how they came about."""
        drawn = self.first.draw_calibration()
        assert drawn is not None
        ids, described = drawn
        if self.seed:
            order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.seed))
            ids = ids[order].contiguous()
        digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        return ids, {**described, "ids_sha256": digest, "order": self.seed}


def measure(case: str, orders: int) -> dict[str, Any]:
    """Values of every accuracy measurement, one an order, and the share of equal codes or masks
    that each further order has with the first, by layer.
    """
    values: dict[str, list[float]] = {}
    shares: list[dict[str, float]] = []
    run = run_of(case)
    reference: dict[str, CompressedWeight] = {}
    for seed in range(orders):
        print(f"{case}: order {seed + 1} of {orders}", file=sys.stderr)
        ordered = Reordered(run, seed)
        for m in ordered.finish().record.measurements:
            if m.value is not None:
                values.setdefault(m.name, []).append(m.value)
        weights = Checkpoint.open(ordered.compress()).weights()
        if not seed:
            reference = dict(weights)
            continue
        shares.append({name: same(reference[name], w.dequantize()) for name, w in weights})
    return {"values": values, "same": shares}


def share(found: dict[str, Any], block: int) -> float:
    """Mean share of equal codes or masks in a block, of all orders against the first."""
    blocks = sorted({int(name.split(".")[2]) for one in found["same"] for name in one})
    prefix = f"model.layers.{blocks[block]}."
    return statistics.fmean(
        value for one in found["same"] for name, value in one.items() if name.startswith(prefix)
    )


def main() -> None:
    """A Markdown table on stdout, a record in --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--orders", type=int, default=5, help="at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    options = parser.parse_args()
    hush_libraries()
    torch.set_grad_enabled(False)
    found = {case: measure(case, options.orders) for case in COMPARED}
    print("| case | same in the first and the last block | measured | each order | spread |")
    print("|---|---|---|---|---:|")
    for case, of in found.items():
        shares = f"{share(of, 0):.2%}, {share(of, -1):.1%}"
        for name, values in of["values"].items():
            each = ", ".join(f"{value:.1f}" for value in values)
            ratio = max(values) / min(values)
            print(f"| {case} | {shares} | {name} | {each} | {ratio:.3f} |")
    if options.json:
        command = f"python benchmarks/conformance/drift.py --orders {options.orders}"
        data = {
            "schema": "conformance-drift/1",
            "command": command,
            "cases": {case: CASES[case] for case in COMPARED},
            "found": found,
            "environment": environment(),
        }
        write_json(options.json, data)


if __name__ == "__main__":
    main()
