"""The runs that a report shows: the newest record of each, and what may be said against dense."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from trinity.harness.records import record
from trinity.harness.records.facts import Speedup
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report.verdicts import accuracy_measurements
from trinity.harness.statistics import comparison
from trinity.harness.statistics.comparison import SPEEDUP, Outcome
from trinity.methods.errors import ConfigError, RecordError

Key = tuple[str, str, str]  # name, metric, engine


@dataclass(eq=False)
class Shown:
    """One run: its newest record, and the record of the dense model that it is judged against.

    path: of the record, below the results folder   history: its records, the oldest first
    outcomes: of its measurements against the dense model's
    """

    record: Record
    path: str
    history: list[tuple[str, Record]]
    dense: "Shown | None" = None
    outcomes: dict[Key, Outcome] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The recipe's."""
        return str(self.record.recipe["name"])

    @property
    def model(self) -> str:
        """The label of its model."""
        return self.record.model.label

    @property
    def machine(self) -> str:
        """The kind of machine it ran on."""
        return str(self.record.environment["machine"])

    @property
    def steps(self) -> str:
        """'slim-quant 4 bits, wanda 2:4, slim-lora rank 0.1'; 'dense' of what changes nothing."""
        compress = self.record.recipe.get("compress") or {}
        steps = [*(compress.get("steps") or ()), *filter(None, [compress.get("tune")])]
        return ", ".join(map(_step, steps)) or "dense"

    @cached_property
    def pattern(self) -> str:
        """What most of its linears keep: '2:4', '50%', or 'no mask'."""
        found = [layer["format"].get("pattern") for layer in self.record.checkpoint.layers.values()]
        masks = [str(pattern) for pattern in found if pattern]
        return max(sorted(set(masks)), key=masks.count) if masks else "no mask"

    @property
    def is_dense(self) -> bool:
        """Whether nothing was done to the model."""
        compress = self.record.recipe.get("compress") or {}
        done = [compress.get(key) for key in ("steps", "tune", "inputs", "cache")]
        return not any([*done, compress.get("layers"), self.record.checkpoint.imported])

    def find(self, key: Key) -> Measurement | None:
        """A measurement of its record."""
        return self.record.find(*key)

    def verdict(self, m: Measurement) -> str:
        """'worse', 'no difference shown', 'baseline'; of a speed-up what was found when timed."""
        if m.metric == SPEEDUP:
            return Speedup.of(m).verdict or ""
        if (outcome := self.outcomes.get(key_of(m))) is not None:
            return outcome.verdict
        judged = m.metric in comparison.SIZES or m in accuracy_measurements(self.record)
        return "baseline" if self.is_dense and judged else ""


def key_of(m: Measurement) -> Key:
    """What a measurement is found by."""
    return m.name, m.metric, m.engine


def shown(results: Path, only: str | None = None) -> list[Shown]:
    """The newest record of each recipe, model and machine below a results folder, judged.

    only: a glob over recipe names; dense runs are kept all the same, for others are judged by them
    RecordError if there is no record, ConfigError if the glob matches none.
    """
    found: dict[tuple[str, str, str], list[tuple[Path, Record]]] = {}
    for path in sorted((results / "v1").rglob("*.json")):
        one = record.read(path)
        of = (one.model.label, str(one.recipe["name"]), str(one.environment["machine"]))
        found.setdefault(of, []).append((path, one))
    if not found:
        msg = f"{results / 'v1'}: holds no record. Run `trinity repro` or `trinity run` first."
        raise RecordError(msg)
    runs = []
    for records in found.values():
        records.sort(key=lambda pair: record.age(*pair))
        named = [(path.relative_to(results).as_posix(), one) for path, one in records]
        runs.append(Shown(named[-1][1], named[-1][0], named))
    kept = [run for run in runs if run.is_dense or fnmatchcase(run.name, only or "*")]
    if only and not any(fnmatchcase(run.name, only) for run in runs):
        names = ", ".join(sorted({run.name for run in runs}))
        msg = f"--only '{only}' matches no recipe of {results}. Recipes: {names}."
        raise ConfigError(msg)
    _judge(kept)
    return sorted(kept, key=lambda run: (run.model, not run.is_dense, run.name, run.machine))


def _judge(runs: Sequence[Shown]) -> None:
    """Every run against the dense one it can be compared with; Holm's correction is over all the
    runs that share one.
    """
    groups: dict[str, list[Shown]] = {}
    for run in runs:
        run.dense = None if run.is_dense else _dense_of(run, runs)
        if run.dense is not None:
            groups.setdefault(run.dense.path, []).append(run)
    for group in groups.values():
        keys = [(run, key_of(m)) for run in group for m in _judged(run.record)]
        pairs = [pair for run in group for pair in _pairs(run)]
        for (run, key), outcome in zip(keys, comparison.judge(pairs), strict=True):
            run.outcomes[key] = outcome


def _pairs(run: Shown) -> list[comparison.Pair]:
    assert run.dense is not None
    return comparison.pairs(_judged(run.record), _judged(run.dense.record))


def _judged(found: Record) -> list[Measurement]:
    sizes = [m for m in found.measurements if m.metric in comparison.SIZES]
    return [*accuracy_measurements(found), *sizes]


def _dense_of(run: Shown, runs: Sequence[Shown]) -> Shown | None:
    """The dense run of the same model with the most measurements that are pairs, the newest of
    equals; None if there is none with any.
    """
    same = [x for x in runs if x.is_dense and x.record.model.sha256 == run.record.model.sha256]
    scored = [(sum(1 for _ in _comparable(run, x)), x.record.date, x.path, x) for x in same]
    best = max(scored, default=None, key=lambda entry: entry[:3])
    return best[3] if best and best[0] else None


def _comparable(run: Shown, dense: Shown) -> Iterator[Measurement]:
    for m in accuracy_measurements(run.record):
        other = dense.find(key_of(m))
        if other is not None and not comparison.mismatch(m, other):
            yield m


def _step(step: dict[str, object]) -> str:
    """'wanda 2:4', 'rtn 4 bits'; options that say the most about what it stores."""
    said = [str(step["method"])]
    said += [str(step["pattern"])] if step.get("pattern") else []
    said += [f"{step['bits']} bits"] if step.get("bits") else []
    said += [f"group {step['group_size']}"] if step.get("group_size") else []
    said += [f"rank {step['rank']}"] if step.get("rank") else []
    return " ".join(said)
