"""BitStack's sorting: how many terms each layer gets (Wang et al., arXiv:2410.23918, section 3.2).

Every layer gets its first term, then all of them their second, then their third, until the memory
is full.  Among terms of one number the order is that of importance: the loss of the model in which
all layers have the terms before, and one layer this one too; the lower, the sooner it is loaded.

It gives the `bitstack` step after it another number of `terms` in every layer.

Differs from the published code: memory is bits a weight, of the layers that have the step; losses
are measured on the calibration text, where the code draws another sample of the same set; orders
that do not fit the memory any more are not measured.
"""

from collections.abc import Mapping
from math import isnan
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from trinity.methods.bitstack import BitstackConfig, term_bits
from trinity.methods.contract import MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.searching import Choice, Levels, Searched, SearchTask


class BitstackSortConfig(MethodConfig):
    """Defaults are the code's.

    bits: of memory a weight, the mean over all layers that have the step
    most: terms that a layer may get
    sequences: of the calibration text that a loss is measured on; all of a text that has fewer
    """

    bits: PositiveFloat = Field(examples=[20.0])  # of small layers, whose factors are large
    most: PositiveInt = 16
    sequences: PositiveInt = 32


def given_to(model: Searched) -> BitstackConfig:
    """The options of the step after; ConfigError if it is not `bitstack`."""
    if "terms" not in model.given:
        msg = (
            "bitstack-sort: the step after it has no option `terms`. Put `bitstack` there, with "
            "`terms: 1`, the least that a layer gets."
        )
        raise ConfigError(msg)
    known = {name: of for name, of in model.given.items() if name in BitstackConfig.model_fields}
    return BitstackConfig.model_validate(known)


def memory(model: Searched, choice: Choice) -> int:
    """Bits of all layers.  choice: terms of each, beyond those that the step after was given"""
    given = given_to(model)
    return sum(
        (given.terms + more) * term_bits(model.shapes[name], given) for name, more in choice.items()
    )


def room(model: Searched, config: BitstackSortConfig) -> float:
    """Bits that all layers may take."""
    return config.bits * sum(out * d_in for out, d_in in model.shapes.values())


def loaded(best: Choice, order: list[str], model: Searched, config: BitstackSortConfig) -> Choice:
    """One term more for each layer of an order, until the next does not fit."""
    choice = dict(best)
    for name in order:
        more = {**choice, name: choice[name] + 1}
        if memory(model, more) > room(model, config):
            break
        choice = more
    return choice


def _fits(model: Searched, more: int, bits: float) -> bool:
    """Whether any layer can get so many terms: all of them have those before."""
    all_before = dict.fromkeys(model.shapes, more - 1)
    return any(memory(model, {**all_before, name: more}) <= bits for name in model.shapes)


class _BitstackSort:
    """Costs every layer compressed at each number of terms, and a loss of a whole model for each
    layer and number.  The model is in memory as a whole meanwhile.
    """

    name = "bitstack-sort"
    paper = "arXiv:2410.23918"
    config = BitstackSortConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: BitstackSortConfig) -> str | None:
        return None

    def levels(self, model: Searched, config: BitstackSortConfig) -> Levels:
        given = given_to(model)
        least, most = memory(model, dict.fromkeys(model.shapes, 0)), room(model, config)
        if least > most:
            msg = (
                f"bitstack-sort: {given.terms} terms of every layer take "
                f"{config.bits * least / most:.2f} bits a weight, more than bits: {config.bits}. "
                f"Raise it, or lower bitstack.terms or its rank."
            )
            raise ConfigError(msg)
        some = [0, *range(1, config.most - given.terms + 1)]
        levels = {more: {"terms": given.terms + more} for more in some if _fits(model, more, most)}
        return dict.fromkeys(model.shapes, levels)

    def rounds(self, config: BitstackSortConfig) -> int:
        return config.most

    def reads(self, model: Searched, config: BitstackSortConfig) -> int:
        levels = self.levels(model, config)
        tried = sum(len(of) - 1 for of in levels.values())
        return tried * min(config.sequences, model.samples) * model.seqlen

    def improve(
        self, best: Choice, at: int, task: SearchTask, config: BitstackSortConfig
    ) -> Choice:
        open_ = [name for name in best if best[name] == at and at + 1 in task.levels[name]]
        if any(level != at for level in best.values()) or not open_:
            return best  # the memory is full, or no layer may have more
        read = range(min(config.sequences, task.model.samples))
        losses: Mapping[str, Any] = {
            name: task.loss({**best, name: at + 1}, read) for name in open_
        }
        order = sorted(open_, key=lambda name: (isnan(losses[name]), losses[name]))
        return loaded(best, order, task.model, config)


BITSTACK_SORT = _BitstackSort()
