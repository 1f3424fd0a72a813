"""The rows of one table on one model, run one after the other, with the dense model in common."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trinity.harness.recipes.paper import Row
from trinity.harness.recipes.recipe import Recipe, without_compression
from trinity.harness.records import record
from trinity.harness.report.failed import Failed
from trinity.harness.report.judged import Cell
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import TrinityError

if TYPE_CHECKING:
    from trinity.harness.repro import cost
    from trinity.harness.runs.run import Run

logger = logging.getLogger(__name__)

Planned = tuple[Row, str | None, Recipe]
Lost = Callable[[Recipe], TrinityError | None]  # why a row was not run where it was tried before


class Rows:
    """The rows of one table on one model: cells of those that were run, and those that were not.

    errors: why, in the order of `failed`
    """

    def __init__(
        self,
        planned: list[Planned],
        out: Path,
        store: StageStore,
        reporter: Reporter,
        left: "cost.Left",
    ) -> None:
        self.planned, self.out, self.store, self.reporter = planned, out, store, reporter
        self.left = left
        self._dense: tuple[Recipe, Run] | None = None
        self.cells: list[Cell] = []
        self.failed: list[Failed] = []
        self.errors: list[Exception] = []

    def run(self, refused: TrinityError | None, lost: Lost | None = None) -> None:
        """Run what can be run.  refused: why none of them can   lost: says why one cannot"""
        if refused is not None:
            for item in self.planned:
                self._fail(item, refused, str(refused))
            return
        possible = []
        for item in self.planned:
            error = lost(item[2]) if lost else None
            if error is not None:
                self._fail(item, error, str(error))
            else:
                possible.append(item)
        # All rows are checked before the first is run: an error in the last is known at once.
        checked = [item for item in possible if self._can(item, self._check)]
        names = [f"{item[2].model.id} {item[2].name}" for item in checked]
        for number, item in enumerate(checked):
            seconds = self.left.seconds(names[number:])
            self.reporter.rows(item[2].name, number, len(checked), seconds)
            self.left.begin()
            self._can(item, self._finish)
            self.left.end(names[number])

    def _check(self, item: Planned) -> None:
        # Imported here: it loads all that runs a model, and a wrong paper or row is found without.
        from trinity.harness.runs.run import Run

        planned = Run(item[2], self.store, self.reporter)
        record.check_writable(self.out, planned.source.label, item[2].name)

    def _finish(self, item: Planned) -> None:
        from trinity.harness.runs.attempts import attempt
        from trinity.harness.runs.run import Run

        row, pattern, recipe = item
        with attempt(recipe, self.out, self.store):
            dense = self._dense_of(recipe)
            finished = Run(recipe, self.store, self.reporter, dense).finish()
        path = record.write(finished.record, self.out)
        self.cells.append(Cell(row, pattern, finished.record, str(path.relative_to(self.out))))

    def _dense_of(self, recipe: Recipe) -> "Run | None":
        """The run that a row is compared with, one for all rows: its model is loaded once."""
        from trinity.harness.runs import run_checks
        from trinity.harness.runs.run import Run

        if recipe.model.dense is not None or not run_checks.compares(recipe):
            return None  # a dense model of the row's own, whose shapes it checks, or none
        wanted = without_compression(recipe)
        if self._dense is None or self._dense[0] != wanted:
            self._dense = (wanted, Run(wanted, self.store, self.reporter))
        return self._dense[1]

    def _can(self, item: Planned, work: Callable[[Planned], None]) -> bool:
        try:
            work(item)
        except (TrinityError, MemoryError, RuntimeError) as error:
            reason = _reason(error)
            if reason is None:
                raise
            logger.info("row %s", item[2].name, exc_info=error)
            self.reporter.say(f"{item[2].name} is not run: {reason}")
            self._fail(item, error, reason)
            return False
        return True

    def _fail(self, item: Planned, error: Exception, reason: str) -> None:
        self.failed.append(Failed(item[0], item[1], reason))
        self.errors.append(error)


def _reason(error: Exception) -> str | None:
    """Why a row was not run, in one paragraph; None for our own mistakes."""
    if isinstance(error, TrinityError):
        return str(error)
    # torch's allocators have no type of their own on a processor.
    words = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in words or "allocate memory" in words:
        return "out of memory: this machine has too little for the model; choose a smaller one."
    return None
