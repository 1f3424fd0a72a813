"""What code knows of a measurement beyond its number: typed facts, kept in its `details`.

`details` is a record's plain JSON and may say more, for readers; what another part of the code
reads is a field here, read by `of` and written by `details` and nowhere else.  A fact that a record
does not have, because it is of another kind or older, is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from trinity.harness.records.measurement import Measurement

EVENLY_SPACED = "evenly spaced"
AVERAGE = "average"  # the name of a mean over tasks
LOSSES = "perplexity"  # the metric whose samples are logarithms


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One group of facts.

    may_be_null: what is written as null where it is unknown; other unknown facts are left out
    """

    may_be_null: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def of(cls, measurement: Measurement) -> Self:
        """What a measurement says."""
        return cls(**{each.name: measurement.details.get(each.name) for each in fields(cls)})

    def details(self, *only: str) -> dict[str, Any]:
        """As a measurement keeps it.  only: these facts, or all that are known"""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if only:
            return {name: values[name] for name in only}
        return {k: v for k, v in values.items() if v is not None or k in self.may_be_null}

    def added_to(self, measurement: Measurement) -> Measurement:
        """The measurement with these facts too."""
        return measurement.model_copy(update={"details": measurement.details | self.details()})


@dataclass(frozen=True, kw_only=True)
class Data(Facts):
    """Where data were read, in words, and the hash of their file or their commit on the hub."""

    source: str | None = None
    sha256: str | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Text(Facts):
    """A text, and the windows that it was cut into.

    tokens: of the whole text   windows: that were read, of `windows_available`
    seqlen_bounded_from: the suite's, where the model reads less
    clusters: of each window, a number; windows of one cluster are alike   clustered_by: what a
        cluster is, in words
    """

    corpus: str | None = None
    split: str | None = None
    joined_with: str | None = None
    tokens: int | None = None
    seqlen: int | None = None
    stride: int | None = None
    windows: int | None = None
    windows_available: int | None = None
    seqlen_bounded_from: int | None = None
    clusters: Sequence[int] | None = None
    clustered_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Questions(Facts):
    """Questions that were asked.

    examples: how many, of those at hand (`examples_available`) and those that the published split
        has (`examples_published`)
    examples_chosen: EVENLY_SPACED or "first", where not all were asked
    answers: the number of the one chosen, of each question   pooled: subjects count by questions
    log_likelihoods: of every answer to each question; none where text was generated
    """

    may_be_null = frozenset({"examples_published"})

    examples: int | None = None
    examples_available: int | None = None
    examples_published: int | None = None
    examples_chosen: str | None = None
    task_version: str | float | None = None
    num_fewshot: int | None = None
    lm_eval_version: str | None = None
    lm_eval_key: str | None = None
    pooled: bool | None = None
    documents_sha256: str | None = None
    requests_truncated_on_the_left: int | None = None
    examples_truncated_on_the_left: int | None = None
    answers: Sequence[int] | None = None
    log_likelihoods: Sequence[Sequence[float | None]] | None = None


@dataclass(frozen=True, kw_only=True)
class Sized(Facts):
    """Which difference the number of questions or windows was chosen to show.

    resolve: as it was asked for, '4 points'   resolution: what those that were read resolve, in the
        unit of an effect: a share, a ratio of perplexities, nats
    discordance: of questions, the share that only one of two models is assumed to get right
    deviation, alike: of windows, the assumed standard deviation of their differences, and how far
        those of one cluster correlate
    """

    resolve: str | None = None
    resolution: float | None = None
    discordance: float | None = None
    deviation: float | None = None
    alike: float | None = None


@dataclass(frozen=True, kw_only=True)
class OfSuite(Facts):
    """The suite of a measurement that has another name, a task's or an average's."""

    may_be_null = frozenset({"suite"})

    suite: str | None = None


@dataclass(frozen=True, kw_only=True)
class Average(Facts):
    """What a mean is of.  questions: in all, of those published"""

    tasks: Sequence[str] | None = None
    questions: int | None = None
    questions_published: int | None = None


@dataclass(frozen=True, kw_only=True)
class AgainstDense(Facts):
    """What was compared while it was measured: which model before compression, in which type."""

    dense_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions(Facts):
    """What was timed, and on what."""

    may_be_null = frozenset(
        {"cpu", "torch_threads", "batch", "prompt_tokens", "new_tokens", "repeats"}
    )

    cpu: str | None = None
    torch_threads: int | None = None
    batch: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    repeats: int | None = None


@dataclass(frozen=True, kw_only=True)
class Speedup(Facts):
    """What was timed in turn with it, how far that differs from itself, and the word for it all.

    baseline_s, baseline_again_s: [repetitions]   noise_floor: the largest |log ratio| of the two
    """

    may_be_null = frozenset({"noise_floor", "noise_interval"})

    baseline_engine: str | None = None
    baseline_path: str | None = None
    baseline_model: str | None = None
    baseline_s: Sequence[float] | None = None
    baseline_again_s: Sequence[float] | None = None
    noise_floor: float | None = None
    noise_interval: Sequence[float] | None = None
    verdict: str | None = None


@dataclass(frozen=True, kw_only=True)
class Floor(Facts):
    """The least time that this machine allows, and how near a time comes to it."""

    may_be_null = frozenset({"floor_share"})

    floor_s: float | None = None
    floor_share: float | None = None
    floor_is: str | None = None


@dataclass(frozen=True, kw_only=True)
class Memory(Facts):
    """What a process took before the model was loaded, and beyond that at its peak."""

    may_be_null = frozenset({"model_bytes"})

    before_loading_bytes: int | None = None
    model_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cache(Facts):
    """Keys and values: of how many positions of a sequence, in which format, in a label's words.

    cache_allocated_bytes: of a module, which has room for more positions
    """

    cache_positions: int | None = None
    cache_format: str | None = None
    cache_allocated_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Product(Facts):
    """A single product x W^T.  shape: of W, [out, in]   rows: of x   read_bytes: of W, as stored"""

    shape: Sequence[int] | None = None
    rows: int | None = None
    read_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers(Facts):
    """The type of what was multiplied, and the instructions that the processor has for it."""

    dtype: str | None = None
    instructions: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured(Facts):
    """When something was measured that is kept, and what else the machine did meanwhile."""

    measured_at: str | None = None
    meanwhile: Mapping[str, Any] | None = None
