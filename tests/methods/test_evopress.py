"""methods/evopress.py."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from random import Random
from typing import Any

import pytest

from trinity.methods.conformance import check
from trinity.methods.errors import ConfigError
from trinity.methods.evopress import (
    EVOPRESS,
    EvopressConfig,
    generation,
    mutated,
    partners,
    selected,
)
from trinity.methods.searching import Choice, Levels, Searched, SearchTask

SHAPES = {"a.q": (16, 16), "a.down": (16, 48), "b.q": (16, 16), "b.down": (16, 48)}
SMALL = {"offspring": 16, "survivors": [4, 1], "tokens": [20, 40], "generations": 40}


def model(given: dict[str, Any], **shapes: tuple[int, int]) -> Searched:
    return Searched(shapes or SHAPES, given, samples=8, seqlen=10)


def config(**options: Any) -> EvopressConfig:
    return EvopressConfig.model_validate({**SMALL, **options})


def removed(levels: Levels, choice: Choice) -> float:
    """Weights that a choice removes, in all layers."""
    return sum(
        float(levels[name][at]["pattern"].rstrip("%")) / 100 * SHAPES[name][0] * SHAPES[name][1]
        for name, at in choice.items()
    )


def interacting(choice: Choice, sequences: Sequence[int]) -> float:
    """A fitness that is no sum over layers, its least unlike anything uniform."""
    a, b, c, d = choice.values()
    return (a - 2) ** 2 + (b + c) ** 2 + 0.5 * (a + d) ** 2 + 0.1 * a * c


def search(levels: Levels, fitness: Any, options: EvopressConfig) -> list[Choice]:
    """The choice after every generation, the first one included."""
    shapes = {name: SHAPES[name] for name in levels}
    task = SearchTask(model({}, **shapes), levels, fitness, fitness)
    found: list[Choice] = [dict.fromkeys(levels, 0)]
    for at in range(options.generations):
        found.append(generation(found[-1], at, task, options))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_of_all_choices_where_they_can_be_counted(seed: int) -> None:
    """Oracle: every choice whose levels cancel, 9^4 of them before that."""
    options = config(levels=4, seed=seed)
    levels = EVOPRESS.levels(model({"pattern": "50%"}), options)
    every = [
        dict(zip(SHAPES, at, strict=True))
        for at in product(*(levels[name] for name in SHAPES))
        if sum(at) == 0
    ]
    least = min(interacting(choice, []) for choice in every)
    found = search(levels, interacting, options)
    assert interacting(found[-1], []) == pytest.approx(least)
    assert interacting(found[0], []) > 2 * least


def test_on_the_same_text_no_generation_is_worse_than_the_one_before() -> None:
    options = config(levels=4, tokens=[20, 80])
    levels = EVOPRESS.levels(model({"pattern": "50%"}), options)
    values = [interacting(choice, []) for choice in search(levels, interacting, options)]
    assert values == sorted(values, reverse=True)


def test_every_level_is_as_many_weights_in_every_layer_and_switches_keep_their_sum() -> None:
    levels = EVOPRESS.levels(model({"pattern": "60%"}), config(levels=4))
    step = int(0.5 * 0.4 / 4 * 16**2)  # of the narrowest layer's square
    start: Choice = dict.fromkeys(SHAPES, 0)
    for name, of in levels.items():
        size = SHAPES[name][0] * SHAPES[name][1]
        for at, options in of.items():
            share = float(Fraction(6, 10) + Fraction(at * step, size))
            assert float(options["pattern"].rstrip("%")) / 100 == pytest.approx(share, abs=1e-6)
    rng, child = Random(0), start
    for _ in range(200):
        child = mutated(child, levels, partners(SHAPES, "pattern"), rng)
        assert sum(child.values()) == 0
        assert all(at in levels[name] for name, at in child.items())
        assert removed(levels, child) == pytest.approx(removed(levels, start), abs=1e-2)
    assert child != start


def test_levels_end_where_a_layer_would_keep_nothing_or_everything() -> None:
    narrow = {"k": (2, 16), "q": (16, 16)}
    levels = EVOPRESS.levels(model({"pattern": "50%"}, **narrow), config(levels=4))
    assert sorted(levels["k"]) == [0]  # a level is 16 weights, half of it
    assert sorted(levels["q"]) == list(range(-4, 5))


def test_bits_switch_between_layers_of_one_size() -> None:
    levels = EVOPRESS.levels(model({"bits": 3}), config(vary="bits"))
    assert levels == {n: {-1: {"bits": 2}, 0: {"bits": 3}, 1: {"bits": 4}} for n in SHAPES}
    rng, child = Random(1), dict.fromkeys(SHAPES, 0)
    seen = set()
    for _ in range(100):
        changed = mutated(child, levels, partners(SHAPES, "bits"), rng)
        seen.add(tuple(changed.values()))
        child = dict(changed)
        assert child["a.q"] + child["b.q"] == 0
        assert child["a.down"] + child["b.down"] == 0
    assert len(seen) == 9


def test_a_mutation_has_one_to_three_switches_and_more_often_few() -> None:
    levels: Levels = {f"{n}": {at: {} for at in range(-9, 10)} for n in range(200)}
    start, kinds = dict.fromkeys(levels, 0), dict.fromkeys(levels, None)
    rng = Random(3)
    moved = [
        sum(abs(at) for at in mutated(start, levels, kinds, rng).values()) // 2 for _ in range(900)
    ]
    # min(U, U) of two draws from 1..3: five ninths, three ninths, one ninth.  A layer that a later
    # switch moves back is rare among 200.
    for count, share in ((1, 5 / 9), (2, 3 / 9), (3, 1 / 9)):
        assert moved.count(count) / 900 == pytest.approx(share, abs=0.05)


def test_a_model_without_partners_stays_as_it_is() -> None:
    levels: Levels = {"a.q": {-1: {}, 0: {}, 1: {}}}
    assert search(levels, lambda choice, read: 0.0, config(generations=2))[-1] == {"a.q": 0}


def test_selections_read_ever_more_text_and_leave_ever_fewer() -> None:
    calls: list[tuple[Choice, int]] = []

    def watched(choice: Choice, read: Sequence[int]) -> float:
        assert len(set(read)) == len(read)
        calls.append((choice, len(read)))
        return interacting(choice, read)

    options = config(levels=4, generations=1)
    best = search(EVOPRESS.levels(model({"pattern": "50%"}), options), watched, options)[0]
    first = [choice for choice, read in calls if read == 2]
    last = [choice for choice, read in calls if read == 4]
    assert len(first) + len(last) == len(calls)
    assert len(first) <= 16
    assert best not in first
    assert last[-1] == best  # the parent joins at the end
    kept = sorted(first, key=lambda choice: interacting(choice, []))[:4]
    assert last[:-1] == kept


def test_a_text_that_is_shorter_than_a_selection_is_read_as_a_whole() -> None:
    options, read = config(survivors=[1], tokens=[1000], generations=1), list[set[int]]()

    def watched(choice: Choice, sequences: Sequence[int]) -> float:
        read.append(set(sequences))
        return 0.0

    search(EVOPRESS.levels(model({"pattern": "50%"}), options), watched, options)
    assert all(numbers == set(range(8)) for numbers in read)


def test_a_new_choice_replaces_one_that_is_as_good() -> None:
    new, old = {"a": 1}, {"a": 0}
    assert selected([new, old], [0.5, 0.5], 1) == [new]


def test_its_seed_decides() -> None:
    options = config(levels=4, generations=5)
    levels = EVOPRESS.levels(model({"pattern": "50%"}), options)
    first = search(levels, interacting, options)
    assert search(levels, interacting, options) == first
    other = config(levels=4, generations=5, seed=1)
    assert search(levels, interacting, other) != first


def test_perplexity_is_a_fitness_too() -> None:
    options = config(levels=4, fitness="perplexity", generations=30)
    levels = EVOPRESS.levels(model({"pattern": "50%"}), options)

    def never(choice: Choice, read: Sequence[int]) -> float:
        raise AssertionError("the divergence was asked for")

    task = SearchTask(model({}), levels, never, interacting)
    best: Choice = dict.fromkeys(levels, 0)
    for at in range(30):
        best = generation(best, at, task, options)
    assert interacting(best, []) < interacting(dict.fromkeys(levels, 0), [])


def test_it_says_how_many_tokens_all_models_read() -> None:
    # 16 children and 20 tokens, 4 and the parent and 40 tokens.
    assert EVOPRESS.reads(model({}), config()) == 40 * (16 * 20 + 5 * 40)
    assert EVOPRESS.reads(model({}), config(survivors=[1], tokens=[30])) == 40 * 17 * 30
    assert EVOPRESS.reads(model({}), EvopressConfig()) == 183_500_800


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ({"pattern": "2:4"}, {}, "has 2:4 there. Give it an unstructured one"),
        ({"bits": 4}, {}, "has no such option there"),
        ({"bits": 4}, {"vary": "bits"}, "has 4 there. Give it 3"),
        ({"pattern": "50%"}, {"vary": "bits"}, "has no such option there. Give it 3"),
        ({"pattern": "50%"}, {"levels": 100}, "less than a weight apart"),
    ],
)
def test_what_it_cannot_search_is_refused(
    given: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        EVOPRESS.levels(model(given), config(**options))


@pytest.mark.parametrize("options", [{"survivors": [4, 2]}, {"survivors": [1], "tokens": [1, 2]}])
def test_selections_that_do_not_end_with_one_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the last selection leaves 1"):
        config(**options)


@pytest.mark.parametrize("options", [{}, {"vary": "bits"}, {"fitness": "perplexity"}], ids=str)
def test_it_conforms(options: dict[str, Any]) -> None:
    assert check(EVOPRESS, options=options) == []
