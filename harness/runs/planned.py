"""What a recipe will take, as a table: memory, time and disk of every part of its run."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from trinity.harness.latency import ceilings, memory
from trinity.harness.latency.ceilings import Ceilings
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records import available
from trinity.harness.runs import estimate, memory_plan
from trinity.harness.runs.estimate import Estimate
from trinity.harness.runs.memory_plan import Peak
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.terminal.progress import Reporter, duration


@dataclass(frozen=True)
class Planned:
    """A recipe's parts.  device: where torch computes, whose speed is measured on a CPU alone"""

    recipe: Recipe
    device: torch.device
    peaks: list[Peak]
    limits: Ceilings
    estimate: Estimate

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "recipe": self.recipe.name,
            "memory": [asdict(peak) | {"total": peak.total} for peak in self.peaks],
            "memory_here": available.total_bytes(),
            "seconds": self._seconds,
            "disk": self.estimate.disk,
        }

    def grid(self) -> Grid:
        """As a table, with its arithmetic below."""
        rows = [
            [
                peak.part,
                duration(self._seconds[peak.part]) if self._seconds else "not known",
                f"{peak.total / 1e9:.2f} GB",
                peak.moment,
            ]
            for peak in self.peaks
        ]
        columns = [Column("part"), Column("time", right=True), Column("memory", right=True)]
        notes = [
            f"{peak.part}: "
            + " + ".join(f"{what} {size / 1e9:.2f}" for what, size in peak.held.items())
            + " GB"
            for peak in self.peaks
        ]
        notes.append(
            f"disk: {self.estimate.disk / 1e9:.1f} GB; {self._timed_by()}; this machine gives "
            f"{available.total_bytes() / 1e9:.1f} GB of memory"
        )
        title = f"{self.recipe.name} on {self.recipe.model.id}"
        return Grid(title, [*columns, Column("fullest while", spare=1)], rows, notes)

    @property
    def _seconds(self) -> dict[str, float] | None:
        return self.estimate.seconds if self.device.type == "cpu" else None

    def _timed_by(self) -> str:
        if self._seconds is None:
            return "no time, because the speed of a GPU is not measured"
        products = self.limits.products(self.recipe.model.dtype)
        return (
            f"time from products at {products / 1e9:.0f} GFLOP/s and reading at "
            f"{self.limits.read / 1e9:.0f} GB/s, which this machine reached"
        )

    def check(self) -> None:
        """MachineError where the memory will not do."""
        memory_plan.check(self.peaks, self.device)


def of_recipe(recipe: Recipe, store: StageStore, reporter: Reporter) -> Planned:
    """Look at the model's configuration and at the machine; no weight is read."""
    run = Run(recipe, store, reporter)
    found = memory_plan.peaks(run, memory.resident_bytes())
    size, limits = estimate.size_of(run.source.path), ceilings.kept(store)
    return Planned(recipe, run.device, found, limits, estimate.of_row(recipe, size, limits))
