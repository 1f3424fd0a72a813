"""What `trinity compare` and `trinity gate` do: two records, or two models at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat

from trinity.harness.commands import evaluate_model
from trinity.harness.progress import Reporter
from trinity.harness.records import compare, record
from trinity.harness.records.compare import SPEEDUP, Outcome
from trinity.harness.records.measurement import Measurement
from trinity.harness.report import verdicts
from trinity.harness.store import StageStore
from trinity.methods.errors import ConfigError

BITS = "bits_per_weight"


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

    suites: accuracy suites   sizes: limit, windows and seqlen, or None each   engine, target: as
    `trinity eval` takes them
    """

    suites: tuple[str, ...]
    sizes: dict[str, int | None]
    engine: str
    target: str


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
    if kinds[0] and how.suites:
        msg = "compare: --suite is for models; records hold what was measured."
        raise ConfigError(msg)
    found = [_measurements(name, how, store, reporter) for name in (ours, baseline)]
    return compare.judge(compare.pairs(*found))


def gate(outcomes: list[Outcome], margins: Margins) -> list[tuple[Outcome, str]]:
    """What fails: significantly worse or slower, its whole interval beyond the margin; and why."""
    return [(o, why) for o in outcomes if (why := _failure(o, margins))]


def newest_like(baseline: str, results: Path) -> str:
    """The newest record of the same model and recipe as a record, other than that record."""
    path = Path(baseline)
    wanted = record.read(path)
    found = []
    for candidate in sorted((results / "v1").rglob("*.json")):
        if candidate.resolve() == path.resolve():
            continue
        other = record.read(candidate)
        if (other.model.sha256, other.recipe["name"]) == (
            wanted.model.sha256,
            wanted.recipe["name"],
        ):
            found.append((record.age(candidate, other), candidate))
    if not found:
        msg = (
            f"gate --baseline {baseline}: {results} holds no other record of recipe "
            f"'{wanted.recipe['name']}' on {wanted.model.label}. Name the record to be judged."
        )
        raise ConfigError(msg)
    return str(max(found)[1])


def line(outcome: Outcome) -> str:
    """One comparison as a line of text."""
    where = f"{outcome.name} {outcome.metric} ({outcome.engine})"
    if outcome.verdict == "not comparable":
        return f"{where}: not comparable ({outcome.reason})"
    numbers = f"{_number(outcome.ours)} against {_number(outcome.baseline)}"
    if outcome.verdict == "equal":
        return f"{where}: {numbers}, equal"
    return f"{where}: {numbers}: {_effect(outcome)}, {outcome.verdict}{_evidence(outcome)}"


def _failure(outcome: Outcome, margins: Margins) -> str | None:
    if outcome.verdict not in ("worse", "slower") or outcome.effect is None:
        return None
    margin, name = _margin(outcome, margins)
    low, high = outcome.effect, outcome.effect
    if outcome.interval:
        low, high = outcome.interval.low, outcome.interval.high
    if outcome.kind == "ratio":
        nearest = min(abs(low - 1), abs(high - 1)) if (low > 1) == (high > 1) else 0.0
    else:
        nearest = min(abs(low), abs(high)) if (low > 0) == (high > 0) else 0.0
    if nearest <= margin:
        return None
    return f"{outcome.verdict} by at least {nearest:.4g}, where --margin-{name} allows {margin:g}"


def _margin(outcome: Outcome, margins: Margins) -> tuple[float, str]:
    if outcome.metric == SPEEDUP:
        return margins.speed, "speed"
    if outcome.metric == "perplexity":
        return margins.perplexity, "perplexity"
    if outcome.metric in compare.SIZES:
        return margins.size, "size"
    if outcome.metric == "kl":
        return margins.divergence, "divergence"
    return margins.accuracy, "accuracy"


def _is_record(name: str) -> bool:
    return name.endswith(".json")


def _measurements(
    name: str, how: Evaluation, store: StageStore, reporter: Reporter
) -> list[Measurement]:
    if not _is_record(name):
        if not how.suites:
            msg = f"{name}: say with --suite what a model is measured on before it is compared."
            raise ConfigError(msg)
        return evaluate_model(
            name, list(how.suites), how.sizes, how.engine, how.target, store, reporter
        )
    found = record.read(Path(name))
    kept: tuple[str, ...] = (*verdicts.ACCURACY, *compare.SIZES, SPEEDUP)
    size = Measurement(
        name="checkpoint",
        metric=BITS,
        value=found.checkpoint.bits_per_weight,
        unit="bits",
        higher_is_better=False,
        path="reference",
        engine="files",
    )
    return [*(m for m in found.measurements if m.metric in kept), size]


def _effect(outcome: Outcome) -> str:
    if outcome.effect is None:
        return "no effect"
    interval = outcome.interval
    factor = 100 if outcome.unit_is_points else 1
    unit = "x" if outcome.kind == "ratio" else " points" if factor == 100 else ""
    text = f"{factor * outcome.effect:.4g}{unit}"
    if interval:
        text += f" [{factor * interval.low:.4g}, {factor * interval.high:.4g}]"
    return text


def _evidence(outcome: Outcome) -> str:
    if outcome.p_adjusted is None:
        return f" ({outcome.test})"
    said = f"{verdicts.p_text(outcome.p_adjusted)} after Holm over {outcome.compared}"
    if outcome.verdict == compare.NO_DIFFERENCE:
        said += f"; {verdicts.detectable_text(outcome)}"
    return f" ({said}; n={outcome.samples})"


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"


def as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Plain data of every comparison."""
    return [o.model_dump(mode="json") for o in outcomes]
