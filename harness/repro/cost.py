"""What a profile will cost, said before it starts; how long it has to go; where the time went."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trinity.harness.hub import repositories
from trinity.harness.hub.failures import Asked
from trinity.harness.latency import ceilings, machine
from trinity.harness.latency.ceilings import Ceilings
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.repro.availability import has_gpu, is_of_hub
from trinity.harness.runs import estimate
from trinity.harness.runs.estimate import Estimate
from trinity.harness.sources import sources
from trinity.harness.store.spent import Seconds
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter, duration

# Bytes of the hub's files that a text is read from; a task's are far fewer.
TEXT_BYTES = {"c4": 320_000_000, "wikitext2": 8_000_000}
FACTOR = 3  # estimates are within it: docs/diary/cost.md


@dataclass(frozen=True)
class Work:
    """Of one model: its rows' names, bytes to fetch, and what all rows take.

    by_row: seconds of each, in their order   estimate: None where a GPU does the work
    """

    model: str
    rows: tuple[str, ...]
    fetched: int
    by_row: tuple[float, ...] = ()
    estimate: Estimate | None = None


def of_model(model: str, recipes: Sequence[Recipe], store: StageStore, reporter: Reporter) -> Work:
    """What one of a profile's models costs, over all its rows."""
    fetched, folder = 0, None
    if is_of_hub(model):
        folder = repositories.config_folder(Asked(model), store, reporter)
        fetched = repositories.bytes_to_fetch(Asked(model), store, reporter)
    names = tuple(recipe.name for recipe in recipes)
    if has_gpu():  # its speed is not measured here
        return Work(model, names, fetched)
    if folder is None:
        folder = sources.resolve(model, None, store, recipes[0].model.training, reporter).path
    size, limits = estimate.size_of(folder), ceilings.kept(store)
    by_row = tuple(estimate.of_row(recipe, size, limits).total_s for recipe in recipes)
    return Work(model, names, fetched, by_row, estimate.of_rows(recipes, size, limits))


def said(works: Sequence[Work], limits: Ceilings | None) -> list[str]:
    """Sentences for the user, one a model, and the sum.  limits: None where a GPU does the work"""
    lines = [f"{work.model}: {_said_of(work)}" for work in works]
    fetched = sum(work.fetched for work in works)
    texts = sum(TEXT_BYTES.values())
    parts = []
    if fetched:
        parts.append(f"{fetched / 1e9:.2f} GB of models (the texts add some {texts / 1e9:.1f} GB)")
    made = [work.estimate for work in works if work.estimate]
    if made and limits:
        parts += [
            duration(sum(each.total_s for each in made)),
            f"{sum(each.disk for each in made) / 1e9:.1f} GB of disk",
            f"{max(each.memory for each in made) / 1e9:.1f} GB of memory",
        ]
    total = f"estimated: {', '.join(parts) or 'nothing to fetch'}"
    if limits:
        total += (
            f"; at {limits.products('float32') / 1e9:.0f} GFLOP/s and {limits.read / 1e9:.0f} GB/s "
            f"that this machine reached; within a factor of {FACTOR} where it is not busy"
        )
        if limits.load > machine.usable_cpus() + 1:
            total += f" (it was when that was measured, load {limits.load:.0f})"
    return [*lines, f"{total}; finished rows are not done again, --model and --rows do less"]


def _said_of(work: Work) -> str:
    words = [f"{work.fetched / 1e9:.2f} GB to fetch"] if work.fetched else []
    rows = f"{len(work.rows)} row{'s' * (len(work.rows) != 1)}"
    if work.estimate is None:
        return "; ".join([*words, rows])
    named = work.estimate.seconds.items()
    parts = [f"{part} {duration(seconds)}" for part, seconds in named if seconds]
    return "; ".join([*words, f"{rows}: {', '.join(parts)}"])


class Left:
    """How long the rows that are to come will take: as estimated, corrected by those that ran."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        """expected: seconds of each row, by its key"""
        self._expected = dict(expected)
        self._done: dict[str, float] = {}
        self._started = 0.0

    def begin(self) -> None:
        """A row starts."""
        self._started = time.perf_counter()

    def end(self, row: str) -> None:
        """It is over."""
        self._done[row] = time.perf_counter() - self._started

    def seconds(self, rows: Sequence[str]) -> float | None:
        """Of these rows; None where nothing was estimated.

        What has taken no time came from the store, and says nothing of the others.
        """
        known = [row for row, took in self._done.items() if took > 1 and row in self._expected]
        expected = sum(self._expected[row] for row in known)
        factor = sum(self._done[row] for row in known) / expected if expected else 1.0
        coming = [self._expected[row] for row in rows if row in self._expected]
        return factor * sum(coming) if coming else None


def where_it_went(spent: Mapping[str, Seconds]) -> list[str]:
    """A line a part, the longest first: seconds, their share, and those of all processors."""
    total = sum(spent.values(), Seconds())
    lines = [f"it took {duration(total.wall)}; on processors {duration(total.processors)}:"]
    for part, found in sorted(spent.items(), key=lambda item: -item[1].wall):
        share = found.wall / total.wall if total.wall else 0.0
        lines.append(
            f"  {part:9} {found.wall:9.1f} s {share:6.0%} {found.processors:9.1f} s of processors"
        )
    return lines
