"""What the parts of a sweep will take, before the first begins, and which cannot be done."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trinity.harness.latency import memory
from trinity.harness.records import record
from trinity.harness.runs import planned
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.sweeps.graph import Graph, Part
from trinity.harness.sweeps.schedule import Needs
from trinity.harness.sweeps.worker import Failure, failure_of
from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.terminal.progress import Reporter, duration
from trinity.methods.errors import TrinityError

RECORD_S = 1.0  # of putting a record together from what is in the store


@dataclass(frozen=True)
class Cost:
    """Of one part.  seconds: None where a GPU does the work   memory, disk: bytes"""

    seconds: float | None
    memory: int
    disk: int


@dataclass(frozen=True)
class Plan:
    """All parts, what each that can be done takes, and why others cannot, by key."""

    graph: Graph
    costs: Mapping[str, Cost]
    refused: Mapping[str, Failure]

    def needs(self) -> dict[str, Needs]:
        """What an executor asks of each part."""
        return {
            key: Needs(self.costs[key].memory if key in self.costs else 0, part.is_alone)
            for key, part in self.graph.items()
        }

    def seconds(self, at_once: int) -> float | None:
        """Of the clock, at the least: the longest chain, or all work over the parts at once, which
        those that run alone have for themselves.  None where it is not known.
        """
        if any(cost.seconds is None for cost in self.costs.values()):
            return None
        took = {key: cost.seconds or 0.0 for key, cost in self.costs.items()}
        ends: dict[str, float] = {}
        for key, part in self.graph.items():
            before = max((ends[need] for need in part.needs), default=0.0)
            ends[key] = before + took.get(key, 0.0)
        alone = sum(took.get(key, 0.0) for key, part in self.graph.items() if part.is_alone)
        shared = (sum(took.values()) - alone) / at_once + alone
        return max(shared, max(ends.values(), default=0.0))

    def data(self, at_once: int) -> dict[str, Any]:
        """As plain data."""
        parts = [
            {
                "part": part.kind,
                "recipe": part.recipe.name,
                "model": part.recipe.model.id,
                "runs": list(part.runs),
                "needs": sorted(part.needs),
                "key": key,
                "seconds": self.costs[key].seconds if key in self.costs else None,
                "memory": self.costs[key].memory if key in self.costs else None,
                "disk": self.costs[key].disk if key in self.costs else None,
                "refused": self.refused[key].reason if key in self.refused else None,
            }
            for key, part in self.graph.items()
        ]
        return {"parts": parts, "at_once": at_once, "seconds": self.seconds(at_once)}

    def grid(self, at_once: int) -> Grid:
        """As a table, its sums below."""
        columns = [
            Column("part"),
            Column("recipe"),
            Column("model", spare=1),
            Column("runs", right=True, spare=2),
            Column("time", right=True),
            Column("memory", right=True),
            Column("disk", right=True, spare=3),
        ]
        rows = [self._row(key, part) for key, part in self.graph.items()]
        runs = sum(part.kind == "record" for part in self.graph.values())
        disk = sum(cost.disk for cost in self.costs.values())
        most = max((cost.memory for cost in self.costs.values()), default=0)
        seconds = self.seconds(at_once)
        took = "its time is not known on a GPU" if seconds is None else duration(seconds)
        notes = [
            f"{runs} runs in {len(rows)} parts, {at_once} at once: at least {took}, "
            f"{most / 1e9:.2f} GB of memory for the largest part, {disk / 1e9:.2f} GB of disk; "
            f"what is in the store already costs nothing"
        ]
        notes += [
            f"cannot be done: {self.graph[key].name}: {failure.reason}"
            for key, failure in self.refused.items()
        ]
        return Grid("", columns, rows, notes)

    def _row(self, key: str, part: Part) -> list[str]:
        cells = [part.kind, part.recipe.name, part.recipe.model.id, str(len(part.runs))]
        if key not in self.costs:
            return [*cells, "", "", ""]
        cost = self.costs[key]
        took = "" if cost.seconds is None else duration(cost.seconds)
        disk = f"{cost.disk / 1e9:.2f} GB" if cost.disk else ""
        return [*cells, took, f"{cost.memory / 1e9:.2f} GB", disk]


def of_graph(graph: Graph, out: Path, store: StageStore, reporter: Reporter) -> Plan:
    """Look at every part's model and at the machine; no weight is read, nothing is compressed."""
    costs: dict[str, Cost] = {}
    refused: dict[str, Failure] = {}
    for key, part in graph.items():
        try:
            costs[key] = _cost(part, out, store, reporter)
        except TrinityError as error:
            refused[key] = failure_of(error)
    return Plan(graph, costs, refused)


def _cost(part: Part, out: Path, store: StageStore, reporter: Reporter) -> Cost:
    if part.kind == "record":
        run = Run(part.recipe, store, reporter)
        record.check_writable(out, run.source.label, part.recipe.name)
        return Cost(RECORD_S, memory.resident_bytes(), 0)
    found = planned.of_recipe(part.recipe, store, reporter)
    if part.kind == "compress":  # on which all other parts wait
        found.check()
    most = max(peak.total for peak in found.peaks if peak.part == part.kind)
    # A module reads the weights of its checkpoint in an order of its own.
    disk = {"compress": found.alone.disk, "lower": found.alone.disk // 2}
    seconds = None if torch.cuda.is_available() else found.alone.seconds[part.kind]
    return Cost(seconds, most, disk.get(part.kind, 0))
