"""Steps that try whole compressed models before the first layer is compressed, and keep the best.

A searching step stands in front of the step whose options it gives, as one that plans does
(`methods/planning.py`), but judges a choice by the model that it makes.  Every layer is compressed
once at each of its levels, in the model before compression; a choice of one level for each layer is
then a model that is put together, not compressed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from trinity.methods.contract import MethodConfig, Statistic

C = TypeVar("C", bound=MethodConfig, contravariant=True)
Choice = Mapping[str, int]
"""A level of every layer; 0 is what the step after was given."""
Levels = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Of every layer, options for the step after by level.  Of any method, hence Any."""
Measure = Callable[[Choice, Sequence[int]], float]
"""What a choice gives on some calibration sequences (by number): a mean over them, lower is better.
"""


@dataclass(frozen=True)
class Searched:
    """What is known of a model before its layers are tried.

    shapes: (out, in) of every layer that has the step, in order
    given: options of the step after, as a recipe writes them (of any method, hence Any)
    samples, seqlen: how many calibration sequences there are, and tokens of each
    """

    shapes: Mapping[str, tuple[int, int]]
    given: Mapping[str, Any]
    samples: int
    seqlen: int


@dataclass(frozen=True, eq=False)
class SearchTask:
    """A model whose layers are there at each of their levels.

    divergence: KL(model before compression || choice) of next-token distributions, nats a token
    loss: next-token loss, nats a token
    """

    model: Searched
    levels: Levels
    divergence: Measure
    loss: Measure


@runtime_checkable
class SearchMethod(Protocol[C]):
    """Gives the step after it other options in every layer, from how whole models do with them.

    needs: `Statistic.NOTHING`; layers are compressed with the statistics of the step after
    """

    name: str
    paper: str
    config: type[MethodConfig]
    needs: Statistic

    def problem(self, shape: tuple[int, int], config: C) -> str | None:
        """Why a layer [out, in] cannot have levels with `config`, or None."""
        ...

    def levels(self, model: Searched, config: C) -> Levels:
        """What each layer is tried with; ConfigError if the model or the step after will not do."""
        ...

    def rounds(self, config: C) -> int:
        """How often `improve` is called; each is kept, so that a killed run goes on after it."""
        ...

    def reads(self, model: Searched, config: C) -> int:
        """Tokens that all rounds read at most: what a search costs."""
        ...

    def improve(self, best: Choice, at: int, task: SearchTask, config: C) -> Choice:
        """The choice after round `at`, from the one before it; round 0 gets level 0 everywhere.

        Depends on nothing but these: randomness takes its seed from the config and `at`.
        """
        ...
