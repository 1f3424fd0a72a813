"""What a recipe will take, as a table: memory, time and disk of every part of its run."""

from collections.abc import Sequence
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
    """A recipe's parts.

    device: where torch computes, whose speed is measured on a CPU alone
    peaks, gpu_peaks: in the machine's memory, and in that of a GPU, if one computes
    estimate: of the whole run, the model that it is compared with included   alone: without that
    """

    recipe: Recipe
    device: torch.device
    peaks: list[Peak]
    gpu_peaks: list[Peak]
    limits: Ceilings
    estimate: Estimate
    alone: Estimate

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "recipe": self.recipe.name,
            "memory": _data(self.peaks),
            "memory_here": available.total_bytes(),
            "gpu_memory": _data(self.gpu_peaks),
            "gpu_memory_here": self._gpu_bytes,
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
        notes = [f"{peak.part}: {_sum(peak)} GB" for peak in self.peaks]
        notes += [
            f"{peak.part} on the GPU, while {peak.moment}: {_sum(peak)} = {peak.total / 1e9:.2f} GB"
            for peak in self.gpu_peaks
        ]
        if self._gpu_bytes is not None:
            gives = f"{self._gpu_bytes / 1e9:.1f} GB"
            notes.append(
                f"this GPU gives {gives}, and CUDA itself takes some of it; never compared"
            )
        notes.append(
            f"disk: {self.estimate.disk / 1e9:.1f} GB; {self._timed_by()}; this machine gives "
            f"{available.total_bytes() / 1e9:.1f} GB of memory"
        )
        title = f"{self.recipe.name} on {self.recipe.model.id}"
        return Grid(title, [*columns, Column("fullest while", spare=1)], rows, notes)

    @property
    def _gpu_bytes(self) -> int | None:
        if self.device.type != "cuda":
            return None
        total: int = torch.cuda.get_device_properties(self.device).total_memory
        return total

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
    whole, alone = estimate.of_rows([recipe], size, limits), estimate.of_row(recipe, size, limits)
    return Planned(recipe, run.device, found, memory_plan.gpu_peaks(run), limits, whole, alone)


def _data(found: Sequence[Peak]) -> list[dict[str, Any]]:
    return [asdict(peak) | {"total": peak.total} for peak in found]


def _sum(peak: Peak) -> str:
    return " + ".join(f"{what} {size / 1e9:.2f}" for what, size in peak.held.items())
