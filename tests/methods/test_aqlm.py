"""methods/aqlm.py."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.samples import GridCase, random_mask, random_quantized
from trinity.methods.aqlm import AQLM, AqlmConfig, beam_search, error, kmeans, started, train
from trinity.methods.contract import LayerStats, Reported
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    CompressedWeight,
    Dense,
    Sparse,
    VectorCoded,
    bits_per_weight,
)
from trinity.methods.formats.vector_codebook import decoded

Array = np.ndarray[Any, Any]
OUT, IN, G = 12, 32, 4
FAST = {"bits": 4, "group_size": G, "dtype": "float32", "steps": 20, "rounds": 3}


def layer(out: int = OUT, d_in: int = IN) -> tuple[Tensor, Tensor, Tensor]:
    """W, X [tokens, in] whose inputs go together, and H."""
    W = torch.randn(out, d_in)
    X = torch.randn(3 * d_in, d_in) @ (torch.eye(d_in) + 0.3 * torch.randn(d_in, d_in))
    return W, X, 2 / len(X) * X.T @ X


def compressed(W: Tensor, H: Tensor, **options: Any) -> tuple[VectorCoded, dict[str, Any]]:
    config = AqlmConfig.model_validate({**FAST, **options})
    made = AQLM.compress(W, Dense(W), LayerStats(H=H), config)
    assert isinstance(made, Reported)
    assert isinstance(made.weight, VectorCoded)
    return made.weight, dict(made.details)


def row_errors(W: Tensor, H: Tensor, found: Tensor) -> Array:
    """tr of each row, in float64."""
    off, moment = (found - W).double().numpy(), H.double().numpy()
    return np.einsum("ij,jk,ik->i", off, moment, off)


def random_start(out: int, d_in: int, count: int, books: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, tables, scales."""
    codes = torch.randint(0, count, (out, d_in // G, books))
    return codes, torch.randn(books, count, G), torch.rand(out, 1) + 0.5


def test_the_error_by_second_moments_is_that_of_the_outputs() -> None:
    _, X, H = layer()
    delta = torch.randn(OUT, IN)
    outputs = (X.double() @ delta.double().T).numpy()
    assert error(delta, H) == pytest.approx(2 * (outputs**2).sum() / len(X) / OUT, rel=1e-5)


@pytest.mark.parametrize(("beam", "books"), [(1, 1), (1, 2), (5, 2)])
def test_the_search_raises_no_rows_error(beam: int, books: int) -> None:
    W, _, H = layer()
    codes, tables, scale = random_start(OUT, IN, 16, books)
    before = row_errors(W, H, decoded(codes, tables, scale))
    for _ in range(3):
        codes = beam_search(codes, tables, scale, W, H, beam)
        after = row_errors(W, H, decoded(codes, tables, scale))
        assert (after <= before * (1 + 1e-5)).all()
        before = after


@pytest.mark.parametrize("books", [1, 2])
def test_a_beam_that_holds_everything_finds_the_best_of_all_codes(books: int) -> None:
    """Every choice is tried, in float64."""
    groups, count = 2, 4
    W, _, H = layer(3, groups * G)
    codes, tables, scale = random_start(3, groups * G, count, books)
    found = beam_search(codes, tables, scale, W, H, count ** (groups * books))
    best = np.full(3, np.inf)
    for choice in product(range(count), repeat=groups * books):
        tried = torch.tensor(choice).view(1, groups, books).expand(3, -1, -1)
        best = np.minimum(best, row_errors(W, H, decoded(tried, tables, scale)))
    assert row_errors(W, H, decoded(found, tables, scale)) == pytest.approx(best, rel=1e-5)


def test_rows_are_searched_alike_whatever_stands_beside_them() -> None:
    W, _, H = layer()
    codes, tables, scale = random_start(OUT, IN, 16, 2)
    whole = beam_search(codes, tables, scale, W, H, 2)
    part = beam_search(codes[3:5], tables, scale[3:5], W[3:5], H, 2)
    errors = [row_errors(W[3:5], H, decoded(c, tables, scale[3:5])) for c in (whole[3:5], part)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


def test_a_step_of_training_is_adams_on_the_error_of_the_outputs() -> None:
    """Oracle: autograd through the outputs' error, in float64, and Adam written out."""
    W, X, H = layer()
    codes, tables, scale = random_start(OUT, IN, 16, 2)
    exact = [of.double().requires_grad_() for of in (tables, scale)]
    books, rows = exact
    whole = sum(books[k][codes[:, :, k]] for k in range(2))
    off = (whole.flatten(1) * rows - W.double()) @ X.double().T  # type: ignore[union-attr]
    (2 / len(X) * off.square().sum() / OUT).backward()
    rate, expected = 1e-3, []
    for of in exact:
        assert of.grad is not None
        second = 0.05 * of.grad.square() / (1 - 0.95)
        expected.append((of - rate * of.grad / (second.sqrt() + 1e-8)).detach())
    optimizer = torch.optim.Adam([tables, scale], lr=rate, betas=(0.0, 0.95), amsgrad=True)
    train(optimizer, codes, W, H, torch.zeros(OUT, 1), 1)
    for of, wanted in zip((tables, scale), expected, strict=True):
        assert (of.double() - wanted).abs().max() < 1e-5


def test_training_lowers_the_error_and_no_scale_falls_below_its_bound() -> None:
    W, _, H = layer()
    codes, tables, scale = started(W, AqlmConfig.model_validate(FAST))
    before = error(decoded(codes, tables, scale) - W, H)
    least = scale - 0.002
    optimizer = torch.optim.Adam([tables, scale], lr=1e-3)
    train(optimizer, codes, W, H, least, 50)
    assert error(decoded(codes, tables, scale) - W, H) < before
    assert bool((scale >= least).all())
    assert bool((scale == least).any())


def test_kmeans_ends_where_every_mean_is_that_of_the_points_nearest_to_it() -> None:
    x = torch.randn(200, 3)
    means = kmeans(x, 8, 500, torch.Generator().manual_seed(0)).double().numpy()
    points = x.double().numpy()
    nearest = ((points[:, None] - means) ** 2).sum(2).argmin(1)
    for k in range(8):
        assert points[nearest == k].mean(0) == pytest.approx(means[k], abs=1e-5)


def test_more_steps_of_kmeans_are_never_further_off() -> None:
    x, offs = torch.randn(300, 4), []
    for steps in (1, 2, 4, 8, 16):
        means = kmeans(x, 16, steps, torch.Generator().manual_seed(1))
        offs.append(float(((x[:, None] - means).double() ** 2).sum(2).amin(1).sum()))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(offs))


def test_more_tables_start_no_further_off() -> None:
    W, offs = layer()[0], []
    for books in (1, 2, 3):
        codes, tables, scale = started(W, AqlmConfig.model_validate({**FAST, "codebooks": books}))
        # Of weights over their rows' norms, which is what k-means is of.
        off = (decoded(codes, tables, scale) - W).double() / scale
        offs.append(float(off.square().sum()))
    assert offs[0] >= offs[1] >= offs[2]


def test_a_layer_of_fewer_groups_than_vectors_is_exact() -> None:
    W, config = torch.randn(3, 16), AqlmConfig.model_validate({**FAST, "codebooks": 1})
    assert torch.allclose(decoded(*started(W, config)), W, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"codebooks": 1}, {"rounds": 0}])
def test_the_result_is_no_worse_than_k_means_and_is_what_the_report_says(
    options: dict[str, Any],
) -> None:
    W, _, H = layer(48)
    made, told = compressed(W, H, **options)
    off = row_errors(W, H, made.dequantize()).sum() / 48
    assert told["error_after"] == pytest.approx(off, rel=1e-4)
    assert told["error_after"] <= told["error_kmeans"] * (1 + 1e-5)
    assert told["rounds"] <= 3


def test_a_round_that_gains_too_little_is_the_last() -> None:
    W, _, H = layer(48)
    assert compressed(W, H, tolerance=0.99)[1]["rounds"] == 1
    assert compressed(W, H, tolerance=0.0)[1]["rounds"] == 3


def test_bits_are_those_of_codes_tables_and_scales() -> None:
    W, _, H = layer(64, 64)
    made, _ = compressed(W, H, bits=4, codebooks=2, group_size=8, dtype="float16", rounds=1)
    assert bits_per_weight(made) == 2 * 4 / 8 + 2 * 16 * 8 * 16 / (64 * 64) + 16 / 64


def test_the_same_seed_is_the_same_weight_and_another_is_not() -> None:
    W, _, H = layer(48)
    first, again, other = (compressed(W, H, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.codebooks, again.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)


@pytest.mark.parametrize(
    "current",
    [
        Sparse(Dense(torch.randn(OUT, IN)), random_mask(OUT, IN, NM(2, 4)), NM(2, 4)),
        random_quantized(OUT, IN, GridCase(4)),
    ],
    ids=["pruned", "quantized"],
)
def test_what_earlier_steps_pruned_or_quantized_is_refused(current: CompressedWeight) -> None:
    W, _, H = layer()
    with pytest.raises(ConfigError, match="aqlm: an earlier step"):
        AQLM.compress(W, current, LayerStats(H=H), AqlmConfig.model_validate(FAST))


def test_layers_that_do_not_fit_are_refused_before_a_weight_is_read() -> None:
    config = AqlmConfig()
    assert AQLM.problem((512, 512), config) is None
    assert "vectors of 8 inputs do not divide in = 100" in str(AQLM.problem((512, 100), config))
    wide = AqlmConfig(codebooks=1, bits=16)
    assert "524288 numbers would take more" in str(AQLM.problem((256, 512), wide))
    with pytest.raises(ConfigError, match="no calibration data"):
        AQLM.compress(torch.randn(64, 64), Dense(torch.randn(64, 64)), LayerStats(), config)
