"""methods/bitstack.py and methods/bitstack_sort.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact
from trinity.methods.bitstack import BITSTACK, LEAST, BitstackConfig, term_bits
from trinity.methods.bitstack_sort import BITSTACK_SORT, BitstackSortConfig, memory, room
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, SignSum, Sparse, bits_per_weight
from trinity.methods.searching import Choice, Searched, SearchTask

SHAPES = {"0.q": (16, 16), "0.down": (16, 48), "1.q": (16, 16), "1.down": (16, 48)}


def compressed(W: Tensor, x_norm: Tensor, **options: Any) -> SignSum:
    config = BitstackConfig.model_validate({"rank": 3, "dtype": "float32", **options})
    made = BITSTACK.compress(W, Dense(W), LayerStats(x_norm=x_norm), config)
    assert isinstance(made, SignSum)
    return made


def misses(W: Tensor, x_norm: Tensor, weight: SignSum) -> float:
    """Of the scaled weight."""
    return float(((weight.dequantize() - W) * (x_norm + LEAST)).double().square().sum())


@pytest.fixture
def layer() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 20), torch.rand(20) * 10 ** torch.randn(20)


def test_terms_are_those_of_singular_values_in_float64(layer: tuple[Tensor, Tensor]) -> None:
    """Oracle: NumPy's decomposition, each step on what the exact terms before it leave."""
    W, x_norm = layer
    s = exact(x_norm) + LEAST
    left, expected = exact(W) * s, np.zeros(W.shape)
    for _ in range(4):
        U, S, Vt = np.linalg.svd(np.abs(left), full_matrices=False)
        term = np.where(left < 0, -1.0, 1.0) * (U[:, :3] * S[:3] @ Vt[:3])
        left, expected = left - term, expected + term
    found = exact(compressed(W, x_norm, terms=4).dequantize()) * s
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_term_makes_the_error_larger(layer: tuple[Tensor, Tensor], dtype: str) -> None:
    W, x_norm = layer
    errors = [misses(W, x_norm, compressed(W, x_norm, terms=n, dtype=dtype)) for n in range(1, 9)]
    assert errors == sorted(errors, reverse=True)


def test_the_first_terms_of_more_are_those_of_fewer(layer: tuple[Tensor, Tensor]) -> None:
    few, many = (compressed(*layer, terms=n) for n in (2, 5))
    assert torch.equal(few.signs, many.signs[:2])
    assert torch.equal(few.V, many.V[:2])


def test_at_full_rank_one_term_is_the_weight(layer: tuple[Tensor, Tensor]) -> None:
    W, x_norm = layer
    found = compressed(W, x_norm, terms=1, rank=64)
    assert found.U.shape[2] == 12
    assert torch.allclose(found.dequantize(), W, atol=1e-4)


def test_inputs_that_are_large_are_kept_better(layer: tuple[Tensor, Tensor]) -> None:
    W, x_norm = layer
    alike = misses(W, x_norm, compressed(W, torch.ones(20), terms=2))
    assert misses(W, x_norm, compressed(W, x_norm, terms=2)) < alike


def test_a_weight_of_zeros_and_dead_inputs_are_no_trouble() -> None:
    zeros = compressed(torch.zeros(4, 6), torch.zeros(6), terms=2)
    assert torch.equal(zeros.dequantize(), torch.zeros(4, 6))


def test_the_memory_of_a_term_is_what_is_stored(layer: tuple[Tensor, Tensor]) -> None:
    weight = compressed(*layer, terms=3, dtype="float16")
    config = BitstackConfig(terms=3, rank=3)
    assert bits_per_weight(weight) * 12 * 20 == 3 * term_bits((12, 20), config)


def test_a_pruned_weight_is_refused() -> None:
    mask = (torch.arange(8) % 4 < 2).repeat(4, 1)
    weight, stats = (
        Sparse(Dense(torch.ones(4, 8)), mask, NM(2, 4)),
        LayerStats(x_norm=torch.ones(8)),
    )
    with pytest.raises(ConfigError, match="sums of signs have no zero"):
        BITSTACK.compress(torch.ones(4, 8), weight, stats, BitstackConfig())


def model(**given: Any) -> Searched:
    return Searched(SHAPES, {"terms": 1, "rank": 2, **given}, samples=8, seqlen=10)


def sorted_(bits: float, loss: Any, **options: Any) -> tuple[Choice, list[int]]:
    """What is chosen, and how many losses each round takes."""
    config = BitstackSortConfig.model_validate({"bits": bits, "most": 6, **options})
    asked: list[int] = []

    def counted(choice: Choice, read: Any) -> float:
        asked[-1] += 1
        return float(loss(choice, read))

    task = SearchTask(model(), BITSTACK_SORT.levels(model(), config), counted, counted)
    best: Choice = dict.fromkeys(SHAPES, 0)
    for at in range(BITSTACK_SORT.rounds(config)):
        asked.append(0)
        best = BITSTACK_SORT.improve(best, at, task, config)
    return best, asked


def by_name(order: list[str]) -> Any:
    """A loss that is least where the layer that an order begins with has more than others."""

    def loss(choice: Choice, _: Any) -> float:
        return float(sum(order.index(name) * level for name, level in choice.items()))

    return loss


@pytest.mark.parametrize("bits", [5.0, 7.0, 9.0, 12.0, 30.0])
def test_all_layers_get_a_term_before_one_gets_the_next_in_order_of_loss(bits: float) -> None:
    """Oracle: the list of all terms, written out, cut where its memory is more than there is."""
    order = ["1.down", "0.q", "1.q", "0.down"]
    found, _ = sorted_(bits, by_name(order))
    numbers = sum(out * d_in for out, d_in in SHAPES.values())
    each = {n: out * d_in + 16 * 2 * (out + d_in) for n, (out, d_in) in SHAPES.items()}
    used, expected = sum(each.values()), dict.fromkeys(SHAPES, 0)
    for name in order * 5:
        used += each[name]
        if used > bits * numbers:
            break
        expected[name] += 1
    assert found == expected
    config = BitstackSortConfig(bits=bits)
    assert memory(model(), found) <= room(model(), config)


def test_no_loss_is_measured_once_the_memory_is_full() -> None:
    _, asked = sorted_(7.0, by_name(list(SHAPES)))
    measured = [count for count in asked if count]
    assert measured == [4] * len(measured)
    assert asked == [*measured, *[0] * (len(asked) - len(measured))]
    assert 0 < len(measured) < len(asked)


def test_a_loss_reads_as_many_sequences_as_were_asked_for() -> None:
    seen = set[tuple[int, ...]]()
    sorted_(9.0, lambda choice, read: seen.add(tuple(read)) or 0.0, sequences=3)
    assert seen == {(0, 1, 2)}


def test_what_a_search_reads_is_counted_before() -> None:
    config = BitstackSortConfig(bits=9.0, most=6, sequences=3)
    _, asked = sorted_(9.0, by_name(list(SHAPES)), sequences=3)
    assert BITSTACK_SORT.reads(model(), config) >= sum(asked) * 3 * 10


def test_a_budget_below_one_term_and_another_step_after_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 terms of every layer take 4\.\d\d bits a weight"):
        BITSTACK_SORT.levels(model(), BitstackSortConfig(bits=2.0))
    other = Searched(SHAPES, {"bits": 4}, samples=1, seqlen=1)
    with pytest.raises(ConfigError, match="no option `terms`"):
        BITSTACK_SORT.levels(other, BitstackSortConfig(bits=3.0))
