"""What `trinity compare` and `trinity gate` do: two records, or two models at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat

from trinity.harness.records import record
from trinity.harness.records.measurement import Measurement
from trinity.harness.report import verdicts
from trinity.harness.runs import requests
from trinity.harness.statistics import comparison
from trinity.harness.statistics.comparison import SPEEDUP, Outcome
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.harness.tracking import judging
from trinity.harness.tracking.measured import measurements_of
from trinity.methods.errors import ConfigError, NothingJudgedError


class Margins(BaseModel):
    """How much worse a gate lets something be, beyond what is significant.

    perplexity, speed, size: as a share of the baseline's   accuracy: difference of shares, so 0.01
    is one point; of top-1 agreement and flip rate too   divergence: nats a token
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    perplexity: NonNegativeFloat = 0.0
    accuracy: NonNegativeFloat = 0.0
    divergence: NonNegativeFloat = 0.0
    speed: NonNegativeFloat = 0.0
    size: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Evaluation:
    """How models, as opposed to records, are measured before they are compared.

    suites: accuracy suites   sizes: limit, windows and seqlen, or None each   engine, target,
    dense: as `trinity eval` takes them
    """

    suites: tuple[str, ...]
    sizes: dict[str, int | None]
    engine: str = "torch"
    target: str = "llvm-cpu"
    dense: str | None = None


def compare_two(
    ours: str, baseline: str, how: Evaluation, store: StageStore, reporter: Reporter
) -> list[Outcome]:
    """Every measurement of `ours` against the baseline's; Holm's correction over all of them.

    ours, baseline: record files, or compressed checkpoints and models
    """
    kinds = [_is_record(name) for name in (ours, baseline)]
    if kinds[0] != kinds[1]:
        msg = (
            f"compare {ours} {baseline}: one is a record and the other a model. Give two records, "
            f"or two models to be measured now."
        )
        raise ConfigError(msg)
    asked = [key for key, value in how.sizes.items() if value is not None]
    usual = Evaluation(how.suites, how.sizes)
    asked += [
        key for key in ("engine", "target", "dense") if getattr(how, key) != getattr(usual, key)
    ]
    if kinds[0] and (how.suites or asked):
        options = ", ".join(f"--{name}" for name in ["suite"] * bool(how.suites) + asked)
        msg = f"compare: {options} is for models; records hold what was measured."
        raise ConfigError(msg)
    if not kinds[0]:
        for name in (ours, baseline):  # a wrong name must not cost the measuring of the other
            _request(name, how)
    found = [_measurements(name, how, store, reporter) for name in (ours, baseline)]
    return [*comparison.judge(comparison.pairs(*found)), *comparison.lacking(*found)]


def gate(outcomes: list[Outcome], margins: Margins) -> list[tuple[Outcome, str]]:
    """What fails: significantly worse or slower, its whole interval beyond the margin; and why.

    NothingJudgedError if no quality or speed could be compared: that passes nothing.
    """
    failed = [(o, why) for o in outcomes if (why := _failure(o, margins))]
    judged = [o for o in outcomes if o.metric in (*verdicts.ACCURACY, SPEEDUP)]
    if judged and not failed and all(o.verdict == "not comparable" for o in judged):
        reasons = dict.fromkeys(f"{o.name} {o.metric}: {o.reason}" for o in judged)
        msg = (
            f"gate: nothing could be compared ({'; '.join(reasons)}). Measure both in the same way."
        )
        raise NothingJudgedError(msg)
    return failed


def newest_like(baseline: str, results: Path) -> str:
    """The newest other record of the same model and recipe as a record, of no earlier day."""
    path = Path(baseline)
    wanted = record.read(path)
    found = []
    for candidate in sorted((results / "v1").rglob("*.json")):
        if candidate.resolve() == path.resolve():
            continue
        other = record.read(candidate)
        same = (other.model.sha256, other.recipe["name"]) == (
            wanted.model.sha256,
            wanted.recipe["name"],
        )
        if same and other.date >= wanted.date:
            found.append((record.age(candidate, other), candidate))
    if not found:
        msg = (
            f"gate --baseline {baseline}: {results} holds no other record of recipe "
            f"'{wanted.recipe['name']}' on {wanted.model.label} from {wanted.date} or later. Name "
            f"the record to be judged."
        )
        raise ConfigError(msg)
    return str(max(found)[1])


def _failure(outcome: Outcome, margins: Margins) -> str | None:
    margin, name = _margin(outcome, margins)
    return judging.regression(outcome, margin, 0.0, f"--margin-{name} allows")


def _margin(outcome: Outcome, margins: Margins) -> tuple[float, str]:
    if outcome.metric == SPEEDUP:
        return margins.speed, "speed"
    if outcome.metric == "perplexity":
        return margins.perplexity, "perplexity"
    if outcome.metric in comparison.SIZES:
        return margins.size, "size"
    if outcome.metric == "kl":
        return margins.divergence, "divergence"
    return margins.accuracy, "accuracy"


def _is_record(name: str) -> bool:
    return name.endswith(".json")


def _request(name: str, how: Evaluation) -> requests.Evaluation:
    if not how.suites:
        msg = f"{name}: say with --suite what a model is measured on before it is compared."
        raise ConfigError(msg)
    return requests.evaluation(name, list(how.suites), how.sizes, how.engine, how.target, how.dense)


def _measurements(
    name: str, how: Evaluation, store: StageStore, reporter: Reporter
) -> list[Measurement]:
    if not _is_record(name):
        # Loads torch and transformers, which two records are compared without.
        from trinity.harness.runs.one_model import evaluate_model

        return evaluate_model(_request(name, how), store, reporter)
    return measurements_of(record.read(Path(name)))


def as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Plain data of every comparison."""
    return [o.model_dump(mode="json") for o in outcomes]
