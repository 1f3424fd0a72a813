"""How a sweep ended: a record for every run, or the part that failed and why."""

from dataclasses import dataclass
from typing import Any

from trinity.harness.recipes.recipe import Recipe
from trinity.harness.sweeps.graph import Graph, Part
from trinity.harness.sweeps.schedule import Done
from trinity.harness.terminal.grid import Column, Grid
from trinity.methods.errors import MachineError, TrinityError

SHOWN = 6  # failed parts that are named in one paragraph; the table has all


@dataclass(frozen=True)
class Ended:
    """A sweep that is over."""

    graph: Graph
    done: Done

    def data(self) -> dict[str, Any]:
        """As plain data."""
        failures = self.done.failures.items()
        return {
            "records": {part.runs[0]: self._record(part) for part in self._runs()},
            "failed": {self.graph[key].name: failure.reason for key, failure in failures},
        }

    def grid(self) -> Grid:
        """As a table."""
        rows = [
            [part.recipe.name, part.recipe.model.id, self._record(part) or self._why_not(part)]
            for part in self._runs()
        ]
        return Grid("", [Column("recipe"), Column("model"), Column("record")], rows)

    def check(self) -> None:
        """TrinityError that names the parts that failed; of the machine, where all of them are."""
        failures = self.done.failures
        if not failures:
            return
        names = [self.graph[key].name for key in failures]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lost = sum(self._record(part) is None for part in self._runs())
        reasons = " ".join(dict.fromkeys(failure.reason for failure in failures.values()))
        codes = {failure.exit_code for failure in failures.values()}
        kind = MachineError if codes == {MachineError.exit_code} else TrinityError
        msg = (
            f"{len(names)} of {len(self.graph)} parts failed ({', '.join(names[:SHOWN])}{more}), "
            f"and {lost} runs have no record for it; the others are done. {reasons}"
        )
        raise kind(msg)

    def lost(self, run: Recipe) -> TrinityError | None:
        """Why a run has no record; None if it has one."""
        (part,) = (part for part in self._runs() if part.recipe == run)
        if self._record(part) is not None:
            return None
        return self.done.failures[self.done.left.get(part.key, part.key)].as_error()

    def _runs(self) -> list[Part]:
        return [part for part in self.graph.values() if part.kind == "record"]

    def _record(self, run: Part) -> str | None:
        outcome = self.done.outcomes.get(run.key)
        return outcome.place if outcome and not outcome.failure else None

    def _why_not(self, run: Part) -> str:
        failed = self.done.left.get(run.key, run.key)
        return f"none: {self.graph[failed].name} failed"
