"""EvoPress: an evolutionary search for what each layer may lose (Sieberling et al.,
arXiv:2410.14649).

A (1 + lambda) search (algorithm 1).  Every generation makes `offspring` copies of the best choice,
each with a few level switches: one layer goes a level down, another a level up, so that the model
stays as small as it was.  Selections on more and more text leave fewer and fewer of them; the best
itself joins the last, and is replaced by what is no worse there.

Levels of a `pattern` differ by the same number of weights in every layer, so that any two layers
can switch: by half of what is left to the nearer end (nothing or everything pruned), over `levels`,
of a square matrix as wide as the narrowest layer.  Levels of `bits` differ by one, and layers of as
many weights can switch.

Differs from the published code: a choice that is drawn twice in a generation is tried once, where
the code draws until it has another, without end in a model with few; a switch without a partner is
left out; selections read whole calibration sequences; bits are 2 to 4 with a mean of 3, where the
code has any mean.  Dropping whole blocks is not offered.
"""

from collections.abc import Hashable, Mapping
from math import ceil
from random import Random
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from trinity.methods.contract import MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Unstructured, parse_pattern
from trinity.methods.searching import Choice, Levels, Searched, SearchTask

MEAN_BITS, BITS = 3, (2, 3, 4)
SWITCHES = 3  # of one mutation, at most


class EvopressConfig(MethodConfig):
    """Defaults are those of the paper's code for pruning.

    vary: what levels differ in: 'pattern', the sparsity, or 'bits'
    levels: how many there are above and below the sparsity that was asked for
    generations: how often the best choice is mutated
    offspring: mutated copies in each generation
    survivors: how many each selection of a generation leaves; the last leaves 1
    tokens: of the calibration text that each selection reads, in whole sequences; all of a text
        that is shorter
    fitness: 'kl', the divergence from the model before compression, or 'perplexity'
    seed: of what is mutated and which sequences are read
    """

    vary: Literal["pattern", "bits"] = "pattern"
    levels: PositiveInt = 8
    generations: PositiveInt = 400
    offspring: PositiveInt = 64
    survivors: tuple[PositiveInt, ...] = (8, 2, 1)
    tokens: tuple[PositiveInt, ...] = (2048, 16384, 65536)
    fitness: Literal["kl", "perplexity"] = "kl"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _selections_end_with_one(self) -> "EvopressConfig":
        if len(self.survivors) != len(self.tokens) or self.survivors[-1:] != (1,):
            msg = (
                f"`survivors` and `tokens` have one number for each selection, and the last "
                f"selection leaves 1: found {list(self.survivors)} and {list(self.tokens)}"
            )
            raise ValueError(msg)
        return self


def pattern_levels(model: Searched, pattern: Unstructured, reach: int) -> Levels:
    """Sparsities of every layer, `reach` on either side where they lie between nothing and all.

    A level is as many weights in every layer, so sparsities of small layers lie further apart.
    """
    s = pattern.sparsity
    narrowest = min(d_in for _, d_in in model.shapes.values())
    weights = int(0.5 * min(s, 1 - s) / reach * narrowest**2)
    if not weights:
        msg = f"evopress: {reach} levels beside {pattern} are less than a weight apart. Lower it."
        raise ConfigError(msg)
    return {
        name: {
            level: {"pattern": str(Unstructured(round(sparsity, 6)))}
            for level in range(-reach, reach + 1)
            if 0 < (sparsity := s + level * weights / (out * d_in)) < 1
        }
        for name, (out, d_in) in model.shapes.items()
    }


def partners(
    shapes: Mapping[str, tuple[int, int]], vary: Literal["pattern", "bits"]
) -> dict[str, Hashable]:
    """What layers that may switch levels with each other have in common: all, or their size."""
    return {name: out * d_in if vary == "bits" else None for name, (out, d_in) in shapes.items()}


def switched(choice: Choice, levels: Levels, kinds: Mapping[str, Hashable], rng: Random) -> Choice:
    """One layer a level down and another of its kind one up; no change where none can."""
    down = [name for name in choice if choice[name] - 1 in levels[name]]
    if not down:
        return choice
    lowered = rng.choice(down)
    others = [name for name in choice if name != lowered and kinds[name] == kinds[lowered]]
    up = [name for name in others if choice[name] + 1 in levels[name]]
    if not up:
        return choice
    raised = rng.choice(up)
    return {**choice, lowered: choice[lowered] - 1, raised: choice[raised] + 1}


def mutated(parent: Choice, levels: Levels, kinds: Mapping[str, Hashable], rng: Random) -> Choice:
    """One to three level switches, fewer rather than more.

    kinds: what layers that may switch with each other have in common
    """
    child = parent
    for _ in range(min(rng.randint(1, SWITCHES), rng.randint(1, SWITCHES))):
        child = switched(child, levels, kinds, rng)
    return child


def selected(children: list[Choice], fitness: list[float], survivors: int) -> list[Choice]:
    """The fittest, the first of equals first."""
    order = sorted(range(len(children)), key=lambda index: (fitness[index], index))
    return [children[index] for index in order[:survivors]]


def generation(best: Choice, at: int, task: SearchTask, config: EvopressConfig) -> Choice:
    """The best after one generation (algorithm 1)."""
    rng = Random(f"{config.seed} {at}")
    kinds = partners(task.model.shapes, config.vary)
    drawn = [mutated(best, task.levels, kinds, rng) for _ in range(config.offspring)]
    children = [child for n, child in enumerate(drawn) if child not in (best, *drawn[:n])]
    measure = task.divergence if config.fitness == "kl" else task.loss
    selections = list(zip(config.survivors, config.tokens, strict=True))
    for place, (survivors, tokens) in enumerate(selections, start=1):
        if place == len(selections):
            children.append(best)  # last, so that of equals a new one is taken
        count = min(ceil(tokens / task.model.seqlen), task.model.samples)
        read = rng.sample(range(task.model.samples), count)
        children = selected(children, [measure(child, read) for child in children], survivors)
    return children[0]


class _Evopress:
    """Costs every layer compressed at each level, and the tokens of `generations` times the
    selections, each read by a whole model: with its defaults 184 million tokens.  The model is in
    memory as a whole meanwhile.  `trinity plan` says how long that takes.
    """

    name = "evopress"
    paper = "arXiv:2410.14649"
    config = EvopressConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: EvopressConfig) -> str | None:
        return None

    def levels(self, model: Searched, config: EvopressConfig) -> Levels:
        given: Any = model.given.get(config.vary)
        if config.vary == "bits" and given == MEAN_BITS:
            return {name: {b - given: {"bits": b} for b in BITS} for name in model.shapes}
        pattern = parse_pattern(str(given)) if config.vary == "pattern" and given else None
        if isinstance(pattern, Unstructured):
            return pattern_levels(model, pattern, config.levels)
        wanted = "3" if config.vary == "bits" else "an unstructured one, such as '50%'"
        msg = (
            f"evopress: it varies {config.vary} (evopress.vary), and the step after it has "
            f"{given if given else 'no such option'} there. Give it {wanted}."
        )
        raise ConfigError(msg)

    def rounds(self, config: EvopressConfig) -> int:
        return config.generations

    def reads(self, model: Searched, config: EvopressConfig) -> int:
        # What a selection leaves is what the next one reads with, the last with the best too.
        trying = [config.offspring, *config.survivors[:-1]]
        trying[-1] += 1
        each = sum(n * tokens for n, tokens in zip(trying, config.tokens, strict=True))
        return config.generations * each

    def improve(self, best: Choice, at: int, task: SearchTask, config: EvopressConfig) -> Choice:
        return generation(best, at, task, config)


EVOPRESS = _Evopress()
