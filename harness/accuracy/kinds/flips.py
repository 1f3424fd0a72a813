"""Suites of kind `flips`: answers that are others than the dense model's."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import PositiveInt

from trinity.harness.accuracy.suite import ComparedSuite
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.recipes.resolution import POINTS, Resolution, Wanted
from trinity.harness.records.measurement import Measurement


class FlipsSuite(ComparedSuite):
    """Answers that are others than the dense model's, in a suite of tasks.

    of: the suite   tasks, limit, resolve: as of that suite (None: as it has them)
    """

    kind: Literal["flips"]
    of: str
    tasks: tuple[str, ...] | None = None
    limit: PositiveInt | None = None
    resolve: Resolution | None = None

    def sizes_resolving(self, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """Those of the suite that is compared."""
        return {"resolve": wanted[POINTS].text} if POINTS in wanted else {}

    @property
    def compared(self) -> SuiteSpec:
        """The suite of tasks, with these sizes."""
        return SuiteSpec(suite=self.of, tasks=self.tasks, limit=self.limit, resolve=self.resolve)

    def compare(
        self, ours: Sequence[Measurement], dense: Sequence[Measurement]
    ) -> list[Measurement]:
        """`flip_rate` of each task."""
        # Imported here: it loads torch, and knowing which suites there are must not.
        from trinity.harness.accuracy import fidelity

        return fidelity.flips(ours, dense, self.name)
