"""methods/slim_quant.py."""

from typing import get_args

import numpy as np
import pytest
import torch

from tests.methods.samples import GridCase, random_mask, random_quantized
from tests.oracles.quantization import (
    best_alpha,
    clipping_error,
    slim_histogram,
    slim_loss,
    slim_search,
)
from trinity.methods import slim_quant
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Quantized, Sparse
from trinity.methods.slim_quant import (
    SLIM_QUANT,
    Objective,
    SlimQuantConfig,
    compress,
    exact_errors,
    expected_error,
    histogram,
    search_alpha,
)

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
all_objectives = pytest.mark.parametrize("objective", OBJECTIVES)


def heavy_tailed(out: int = 32, d_in: int = 48) -> torch.Tensor:
    """Laplace-distributed weights."""
    return torch.randn(out, d_in).exp() * torch.randn(out, d_in).sign()


def absmax_error(W: torch.Tensor, bits: int) -> float:
    return clipping_error(W.double().numpy(), float(W.abs().max()), bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_reference_objective_is_the_formula_of_the_published_code(bits: int) -> None:
    centres, probabilities = histogram(torch.randn(24, 24))
    v = centres.double().numpy()
    p = probabilities.double().numpy() / (v[1] - v[0])
    bins = [5, 100, 300, 511]
    ours = expected_error(centres[bins], centres, probabilities, bits, "reference")
    expected = [slim_loss(i, v, p, bits) for i in bins]
    # floor() of a float32 quotient may fall on the other side for a few of 512 bins.
    np.testing.assert_allclose(ours.double().numpy(), expected, rtol=5e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_reference_search_finds_what_the_published_one_finds(bits: int) -> None:
    W = torch.randn(32, 32)
    v, p = slim_histogram(W.double().numpy())
    expected = slim_search(v, p, bits)
    found = search_alpha(W, bits, "reference")
    # In float32 another bin may win, if it is as good: its loss in float64 must be the best one.
    nearest = int(np.abs(v - found).argmin())
    assert abs(v[nearest] - found) < 1e-5
    assert slim_loss(nearest, v, p, bits) <= slim_loss(expected, v, p, bits) * 1.001


def test_the_histogram_is_the_density_of_magnitudes() -> None:
    W = torch.randn(32, 32)
    centres, probabilities = histogram(W)
    v, p = slim_histogram(W.double().numpy())
    np.testing.assert_allclose(centres.double().numpy(), v, atol=1e-6)
    assert float(probabilities.sum()) == pytest.approx(1)
    # A weight on the edge of two bins may be counted in either.
    moved = np.abs(probabilities.double().numpy() - p * (v[1] - v[0])).sum() * W.numel()
    assert moved <= 4


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_the_corrected_search_is_as_good_as_a_fine_search_of_the_true_error(
    bits: int, kind: str
) -> None:
    W = torch.randn(32, 48) if kind == "normal" else heavy_tailed()
    W64 = W.double().numpy()
    found = clipping_error(W64, search_alpha(W, bits, "corrected"), bits)
    _, best = best_alpha(lambda alpha: clipping_error(W64, alpha, bits), float(W.abs().max()), 150)
    # A histogram of 512 bins that forgets signs stands for 1536 weights.
    assert found <= best * 1.03


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_corrected_search_never_loses_to_absmax(bits: int) -> None:
    W = heavy_tailed()
    found = clipping_error(W.double().numpy(), search_alpha(W, bits, "corrected"), bits)
    assert found <= absmax_error(W, bits) * 1.01


def test_every_objective_beats_absmax_on_heavy_tails_at_four_bits() -> None:
    W = heavy_tailed()
    for objective in OBJECTIVES:
        found = clipping_error(W.double().numpy(), search_alpha(W, 4, objective), 4)
        assert found < 0.8 * absmax_error(W, 4)


@all_objectives
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_alpha_is_positive_and_at_most_the_largest_magnitude(
    objective: Objective, bits: int
) -> None:
    for W in (torch.randn(8, 16), heavy_tailed(), torch.rand(8, 16), 1 + 1e-3 * torch.rand(4, 4)):
        assert 0 < search_alpha(W, bits, objective) <= float(W.abs().max())


@all_objectives
def test_scaling_the_weight_scales_alpha(objective: Objective) -> None:
    W = torch.randn(16, 32)
    alpha = search_alpha(W, 4, objective)
    for factor in (2.0**-20, 0.25, 2.0**20):
        assert search_alpha(factor * W, 4, objective) == pytest.approx(factor * alpha, rel=1e-6)


def test_the_exact_error_is_that_of_the_quantizer_weight_by_weight() -> None:
    for W in (torch.randn(12, 16), heavy_tailed(8, 8), torch.zeros(2, 4), torch.full((3, 4), -0.7)):
        for bits in (2, 3, 4, 8):
            alphas = torch.tensor([0.05, 0.3, 0.9, 2.5, 40.0], dtype=torch.float64)
            expected = [clipping_error(W.double().numpy(), float(a), bits) for a in alphas]
            found = exact_errors(W, alphas, bits)
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy", "one sign"])
def test_the_exact_search_is_the_best_of_its_grid(bits: int, kind: str) -> None:
    W = {
        "normal": torch.randn(16, 24),
        "heavy": heavy_tailed(16, 24),
        "one sign": -torch.rand(9, 9),
    }[kind]
    W64 = W.double().numpy()
    found = clipping_error(W64, search_alpha(W, bits, "exact"), bits)
    _, best = best_alpha(lambda alpha: clipping_error(W64, alpha, bits), float(W.abs().max()), 512)
    assert found <= best * (1 + 1e-6)
    # AbsMax is on the grid, so this needs no tolerance for the width of a bin.
    assert found <= absmax_error(W, bits) * (1 + 1e-6)


@pytest.mark.parametrize("objective", ["reference", "corrected"])
def test_signs_do_not_matter_to_a_histogram_of_magnitudes(objective: Objective) -> None:
    W = torch.randn(16, 32)
    assert search_alpha(W, 4, objective) == search_alpha(-W, 4, objective)
    assert search_alpha(W, 4, objective) == search_alpha(W.abs(), 4, objective)


@all_objectives
def test_an_outlier_moves_alpha_far_less_than_the_largest_magnitude(objective: Objective) -> None:
    # With only 4,096 weights, clipping the outlier costs more than rounding all others to zero.
    W = torch.randn(256, 256)
    before = search_alpha(W, 4, objective)
    W[3, 5] = 100
    assert search_alpha(W, 4, objective) < 5 * before
    assert float(W.abs().max()) > 20 * before


@all_objectives
def test_more_bits_clip_less(objective: Objective) -> None:
    W = torch.randn(64, 64)
    alphas = [search_alpha(W, bits, objective) for bits in (2, 4, 8)]
    assert alphas == sorted(alphas)
    assert alphas[0] < alphas[2]


@all_objectives
def test_four_bits_give_at_most_sixteen_values(objective: Objective) -> None:
    quantized = compress(torch.randn(32, 64), SlimQuantConfig(objective=objective))
    assert len(set(quantized.dequantize().flatten().tolist())) <= 16
    assert quantized.scale.shape == (1, 1)
    assert quantized.zero_point is None


def test_the_scale_puts_alpha_on_the_largest_code() -> None:
    W = torch.randn(16, 32)
    quantized = compress(W, SlimQuantConfig(bits=4))
    assert float(quantized.scale) == pytest.approx(search_alpha(W, 4, "reference") / 7, rel=1e-6)


@all_objectives
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_constant_magnitude_is_reproduced(objective: Objective, bits: int) -> None:
    W = torch.full((4, 8), 0.3) * torch.randn(4, 8).sign()
    decoded = compress(W, SlimQuantConfig(bits=bits, objective=objective)).dequantize()
    torch.testing.assert_close(decoded, W, rtol=1e-6, atol=0)


@all_objectives
def test_a_layer_of_zeros_decodes_to_zeros(objective: Objective) -> None:
    config = SlimQuantConfig(objective=objective)
    assert not compress(torch.zeros(4, 8), config).dequantize().any()


@all_objectives
@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1)], ids=str)
def test_a_single_row_or_column_is_quantized_too(
    objective: Objective, shape: tuple[int, int]
) -> None:
    W = torch.randn(shape)
    decoded = compress(W, SlimQuantConfig(bits=8, objective=objective)).dequantize()
    assert float((decoded - W).abs().max()) < 0.2 * float(W.abs().max())


@all_objectives
def test_an_optimum_in_the_last_bins_is_found_also_where_ten_divides_the_bins(
    objective: Objective,
) -> None:
    # 520 bins: the published code's coarse pass then has 10 entries, and an optimum in the last one
    # makes its second pass empty and its answer the first bin.
    W = torch.linspace(-1, 1, 520_000).view(520, 1000)
    assert histogram(W)[0].numel() == 520
    assert search_alpha(W, 8, objective) > 0.9


def test_the_size_of_the_pieces_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(32, 32)
    whole = [search_alpha(W, 4, objective) for objective in OBJECTIVES]
    monkeypatch.setattr(slim_quant, "CHUNK", 1000)
    assert [search_alpha(W, 4, objective) for objective in OBJECTIVES] == whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_quantized_as_their_float32_values(dtype: torch.dtype) -> None:
    W = torch.randn(16, 32).to(dtype)
    half = SLIM_QUANT.compress(W.float(), Dense(W), LayerStats(), SlimQuantConfig())
    full = SLIM_QUANT.compress(W.float(), Dense(W.float()), LayerStats(), SlimQuantConfig())
    assert torch.equal(half.dequantize(), full.dequantize())


def test_inputs_are_left_unchanged() -> None:
    W = torch.randn(16, 32)
    before = W.clone()
    SLIM_QUANT.compress(W, Dense(W), LayerStats(), SlimQuantConfig())
    assert torch.equal(W, before)


def test_a_pruned_weight_is_quantized_under_its_mask() -> None:
    W, mask = torch.randn(16, 32), random_mask(16, 32, NM(2, 4))
    current = Sparse(Dense(W), mask, NM(2, 4))
    sparse = SLIM_QUANT.compress(W, current, LayerStats(), SlimQuantConfig())
    assert isinstance(sparse, Sparse)
    assert isinstance(sparse.values, Quantized)
    assert torch.equal(sparse.mask, mask)


def test_quantizing_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="slim-quant: an earlier step already quantized"):
        SLIM_QUANT.compress(
            torch.randn(4, 8), random_quantized(4, 8, GridCase(4)), LayerStats(), SlimQuantConfig()
        )
