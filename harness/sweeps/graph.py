"""The parts of many runs, and which part waits for which: data, without a process or a clock.

A part is a recipe cut down to what the part reads.  Two runs whose cut recipes are equal share the
part: compression with one calibration, a dense model, its evaluation, a module.  What the parts
hand on lies in the stage store, whose locks also cover what cannot be seen here, such as equal
first blocks of two recipes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from trinity.harness.accuracy import suites
from trinity.harness.accuracy.suite import ComparedSuite, Suite
from trinity.harness.recipes.recipe import (
    CompressSpec,
    EvaluateSpec,
    Recipe,
    SuiteSpec,
    without_compression,
)
from trinity.harness.store.stages import fingerprint

Kind = Literal["compress", "lower", "evaluate", "bench", "record"]


@dataclass(frozen=True)
class Part:
    """One part of one run or of several.

    key: its name in the graph   needs: keys of parts before it
    recipe: cut to what the part reads, whole of kind 'record'
    runs: names of the runs that it is for, the first being the one that it is accounted to
    """

    key: str
    kind: Kind
    recipe: Recipe
    needs: frozenset[str]
    runs: tuple[str, ...]

    @property
    def name(self) -> str:
        """What people read."""
        return f"{self.kind} {self.recipe.name} on {self.recipe.model.id}"

    @property
    def is_alone(self) -> bool:
        """Whether it takes times, which anything beside it would spoil."""
        return self.kind == "bench"


Graph = Mapping[str, Part]


def name_of(run: Recipe) -> str:
    """A run's name among those of a sweep."""
    return f"{run.name} on {run.model.id}"


def of_runs(runs: Sequence[Recipe]) -> Graph:
    """The parts of runs, each once, none before what it needs."""
    parts: dict[str, Part] = {}
    for run in runs:
        _Adding(parts, name_of(run)).run(run)
    return parts


@dataclass
class _Adding:
    """Adds the parts of one run, each after those that it needs."""

    parts: dict[str, Part]
    owner: str

    def run(self, run: Recipe) -> str:
        needs = {self.compress(run)}
        if run.lower:
            needs.add(self.lower(run))
        seeds = run.calibration.seeds if run.calibration and not is_dense(run) else ()
        for seed in seeds[1:]:
            sibling = _of_seed(run, seed)
            needs |= {self.compress(sibling), *self.evaluate(sibling)}
        needs |= {*self.evaluate(run), *self.bench(run)}
        return self._add("record", run, needs)

    def compress(self, run: Recipe) -> str:
        return self._add("compress", _cut(run), set())

    def lower(self, run: Recipe) -> str:
        return self._add("lower", _cut(run, "lower"), {self.compress(run)})

    def evaluate(self, run: Recipe) -> list[str]:
        """Its accuracy; beforehand, the dense model and what is asked of it for a comparison."""
        spec = run.evaluate
        if spec is None:
            return []
        needs, kept = {self.compress(run)}, ["evaluate"]
        if spec.engine == "iree":
            needs.add(self.lower(run))
            kept.append("lower")
        resolved = [_resolved(suite) for suite in spec.suites]
        if any(suite.needs_dense for suite in resolved) and _has_another_dense(run):
            dense = without_compression(run)
            needs.add(self.compress(dense))
            compared = tuple(s.compared for s in resolved if isinstance(s, ComparedSuite))
            if compared:
                asked = EvaluateSpec(suites=tuple(dict.fromkeys(compared)))
                needs |= {*self.evaluate(dense.model_copy(update={"evaluate": asked}))}
        return [self._add("evaluate", _cut(run, *kept), needs)]

    def bench(self, run: Recipe) -> list[str]:
        if run.bench is None:
            return []
        timed = [run]
        if run.bench.baseline == "dense" and _has_another_dense(run):
            timed.append(without_compression(run))
        needs = {self.compress(each) for each in timed}
        if run.lower:
            needs |= {self.lower(each) for each in timed}
        return [self._add("bench", _cut(run, "lower", "bench"), needs)]

    def _add(self, kind: Kind, recipe: Recipe, needs: set[str]) -> str:
        # The name says nothing of what is done, but of a record, which holds it.
        same = recipe.model_dump(mode="json", exclude=set() if kind == "record" else {"name"})
        key = f"{kind} {fingerprint(same)[:16]}"
        part = self.parts.get(key) or Part(key, kind, recipe, frozenset(needs), ())
        if self.owner not in part.runs:
            part = replace(part, runs=(*part.runs, self.owner))
        self.parts[key] = part
        return key


def is_dense(run: Recipe) -> bool:
    """Whether a recipe does nothing to its model."""
    return run.compress == CompressSpec(skip=run.compress.skip, order=run.compress.order)


def _has_another_dense(run: Recipe) -> bool:
    """Whether the model before compression is not the run's own."""
    return run.model.dense is not None or not is_dense(run)


@cache
def _resolved(spec: SuiteSpec) -> Suite:
    """A suite, whose file is read once for thousands of runs."""
    return suites.resolve(spec)


def _cut(run: Recipe, *kept: str) -> Recipe:
    """What compression reads, and these sections."""
    changes: dict[str, Any] = {
        key: None for key in ("lower", "evaluate", "bench") if key not in kept
    }
    if run.calibration:
        changes["calibration"] = run.calibration.with_seed(run.calibration.seed)
        if is_dense(run):
            changes["calibration"] = None
    return run.model_copy(update=changes)


def _of_seed(run: Recipe, seed: int) -> Recipe:
    assert run.calibration is not None
    changes = {"name": f"{run.name}, seed {seed}", "calibration": run.calibration.with_seed(seed)}
    return run.model_copy(update=changes)
