"""One try of a method that searches, on a model that is a formula.  For `conformance`."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from trinity.methods.contract import MethodConfig
from trinity.methods.declarations import Violation
from trinity.methods.errors import ConfigError
from trinity.methods.searching import Choice, Searched, SearchMethod, SearchTask
from trinity.methods.trials import called

ROUNDS = 3  # of those that a search has
# Of a step after that prunes, quantizes or adds up terms: what a search may look for in it.
GIVEN: Mapping[str, Any] = {"pattern": "50%", "bits": 3, "terms": 1}
SAMPLES, SEQLEN = 512, 2048
SHAPES = {f"{block}.{name}": (64, 64) for block in "ab" for name in "qkvo"}
SHAPES |= {f"{block}.down": (64, 128) for block in "ab"}
WHERE = "a model of ten linears"


def search_violations(method: SearchMethod[MethodConfig], config: MethodConfig) -> list[Violation]:
    """Levels, and what a few rounds choose of them, twice, with other global generators."""
    model = Searched(SHAPES, GIVEN, SAMPLES, SEQLEN)
    levels = called(partial(method.levels, model, config))
    if isinstance(levels, ConfigError):
        return [Violation(f"nothing was tried: `levels` refuses it ({levels})", WHERE)]
    if isinstance(levels, BaseException):
        return [Violation(f"levels: raised {type(levels).__name__}: {levels}", WHERE)]
    if not isinstance(levels, Mapping) or levels.keys() != SHAPES.keys():
        return [Violation("levels: gave no levels for each layer", WHERE)]
    if not all(isinstance(of, Mapping) and 0 in of for of in levels.values()):
        return [Violation("levels: a layer has no level 0, which the step after was given", WHERE)]
    found = []
    if levels != called(partial(method.levels, model, config)):
        found.append(Violation("levels: the same model has other levels", WHERE))
    for name, of in (("rounds", (config,)), ("reads", (model, config))):
        count = called(partial(getattr(method, name), *of))
        if not isinstance(count, int) or count < 1:
            found.append(Violation(f"{name}: gave {count!r}, expected a positive integer", WHERE))
    return found if found else _round_violations(method, config, model, levels)


def _round_violations(
    method: SearchMethod[MethodConfig], config: MethodConfig, model: Searched, levels: Any
) -> list[Violation]:
    """levels: as they were given; hence Any"""
    task = SearchTask(model, levels, _measure, _measure)
    best: Choice = dict.fromkeys(SHAPES, 0)
    for at in range(min(ROUNDS, method.rounds(config))):
        given = dict(best)
        made = []
        for seed in (1, 2):
            made.append(_seeded(seed, partial(method.improve, best, at, task, config)))
        if isinstance(made[0], BaseException):
            return [Violation(f"improve: raised {type(made[0]).__name__}: {made[0]}", WHERE)]
        if not isinstance(made[0], Mapping) or made[0].keys() != SHAPES.keys():
            return [Violation("improve: chose no level for each layer", WHERE)]
        if any(level not in levels[name] for name, level in made[0].items()):
            return [Violation("improve: chose a level that a layer does not have", WHERE)]
        if made[0] != made[1]:
            return [Violation("improve: the same round chose otherwise", WHERE)]
        if best != given:
            return [Violation("improve: changed the choice that it was given", WHERE)]
        best = made[0]
    return []


def _seeded(seed: int, run: Callable[[], Any]) -> Any:
    """What a method gives, hence Any, with another state of Python's generator, put back then."""
    before = random.getstate()
    torch.manual_seed(seed)
    random.seed(seed)
    try:
        return called(run)
    finally:
        random.setstate(before)


def _measure(choice: Choice, sequences: Sequence[int]) -> float:
    """Lower where layers with later names are at higher levels; a little of each sequence."""
    assert sequences
    assert all(0 <= number < SAMPLES for number in sequences)
    weighed = sum(place * level for place, level in enumerate(choice.values()))
    return 100.0 - weighed + sum(sequences) / (SAMPLES * len(sequences))
