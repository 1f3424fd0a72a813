"""methods/formats/sparse.py."""

import pytest
import torch

from tests.methods.samples import GridCase, random_mask, random_quantized
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Quantized, Sparse, Unstructured, parse_pattern

PATTERNS = [NM(2, 4), NM(1, 4), NM(2, 8), NM(4, 8), NM(1, 2), NM(3, 12), Unstructured(0.5)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_masked_out_entries_decode_to_zero_and_kept_ones_to_their_values(
    pattern: NM | Unstructured,
) -> None:
    W, mask = torch.randn(6, 24), random_mask(6, 24, pattern)
    decoded = Sparse(Dense(W), mask, pattern).dequantize()
    for i in range(6):
        for j in range(24):
            assert decoded[i, j] == (W[i, j] if mask[i, j] else 0)


def test_masked_out_entries_decode_to_zero_also_beside_a_zero_point() -> None:
    values = random_quantized(4, 8, GridCase(4, symmetric=False, groups=1))
    mask = random_mask(4, 8, NM(2, 4))
    assert not Sparse(values, mask, NM(2, 4)).dequantize()[~mask].any()


def test_weights_that_differ_only_where_masked_hold_the_same_bytes() -> None:
    mask = random_mask(4, 8, NM(2, 4))
    one, other = torch.randn(4, 8), torch.randn(4, 8)
    other[mask] = one[mask]
    first, second = (Sparse(Dense(W), mask, NM(2, 4)).values for W in (one, other))
    assert isinstance(first, Dense)
    assert isinstance(second, Dense)
    assert torch.equal(first.values, second.values)


def test_masking_leaves_the_given_tensors_unchanged() -> None:
    W, mask = torch.randn(4, 8), random_mask(4, 8, NM(2, 4))
    before = W.clone()
    Sparse(Dense(W), mask, NM(2, 4))
    assert torch.equal(W, before)
    quantized = random_quantized(4, 8, GridCase(4))
    codes = quantized.codes.clone()
    Sparse(quantized, mask, NM(2, 4))
    assert torch.equal(quantized.codes, codes)


def test_sparsity_is_the_fraction_removed() -> None:
    mask = torch.tensor([[True, False, False, False]])
    assert Sparse(Dense(torch.ones(1, 4)), mask, Unstructured(0.5)).sparsity == 0.75
    assert NM(1, 4).sparsity == 0.75


def test_a_group_that_keeps_too_many_is_refused_with_its_place() -> None:
    mask = random_mask(3, 12, NM(2, 4))
    mask[1, 4:8] = torch.tensor([True, True, True, False])
    with pytest.raises(ConfigError, match=r"row 1, inputs 4\.\.7 keep 3 .* 2:4 keeps exactly 2"):
        Sparse(Dense(torch.ones(3, 12)), mask, NM(2, 4))


def test_a_group_that_keeps_too_few_is_refused() -> None:
    mask = random_mask(3, 12, NM(2, 4))
    mask[2, 8:12] = False
    with pytest.raises(ConfigError, match=r"row 2, inputs 8\.\.11 keep 0"):
        Sparse(Dense(torch.ones(3, 12)), mask, NM(2, 4))


def test_a_pattern_that_does_not_divide_the_layer_is_refused_with_the_width() -> None:
    with pytest.raises(ConfigError, match="2:4 does not divide the layer: in = 6"):
        Sparse(Dense(torch.ones(3, 6)), torch.ones(3, 6, dtype=torch.bool), NM(2, 4))


def test_a_mask_of_another_shape_or_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mask: expected bool \[3, 4\].*\[4, 3\]"):
        Sparse(Dense(torch.ones(3, 4)), torch.ones(4, 3, dtype=torch.bool), NM(2, 4))
    with pytest.raises(ConfigError, match=r"mask: expected bool.*torch\.uint8"):
        Sparse(Dense(torch.ones(3, 4)), torch.ones(3, 4, dtype=torch.uint8), NM(2, 4))


def test_a_transposed_mask_is_checked_like_its_copy() -> None:
    mask = random_mask(4, 8, NM(2, 4)).T.contiguous().T
    assert torch.equal(Sparse(Dense(torch.ones(4, 8)), mask, NM(2, 4)).dequantize() != 0, mask)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4), (2, 17)])
def test_an_impossible_pattern_is_refused(n: int, m: int) -> None:
    with pytest.raises(ConfigError, match=rf"pattern {n}:{m}.*1 <= N < M <= 16"):
        NM(n, m)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_an_impossible_sparsity_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match="expected a fraction between 0 and 1"):
        Unstructured(sparsity)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(2, 4)),
        (" 4:8 ", NM(4, 8)),
        ("50%", Unstructured(0.5)),
        ("62.5%", Unstructured(0.625)),
    ],
)
def test_patterns_are_read_as_a_recipe_spells_them(text: str, pattern: NM | Unstructured) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "2-4", "0.5", "50", "2:4:8", "-50%", "half"])
def test_text_that_is_no_pattern_is_refused_with_both_spellings(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected N:M such as '2:4'.*sparsity such as '50%'"):
        parse_pattern(text)


@pytest.mark.parametrize("sparsity", [0.5, 1 / 3, 2 / 3, 0.55, 0.07, 0.29, 1e-7, 0.999999999])
def test_a_sparsity_survives_being_written_and_read(sparsity: float) -> None:
    assert parse_pattern(str(Unstructured(sparsity))) == Unstructured(sparsity)


def test_a_round_sparsity_is_written_round() -> None:
    assert [str(Unstructured(s)) for s in (0.5, 0.9, 0.125)] == ["50%", "90%", "12.5%"]


def test_the_values_of_a_sparse_weight_are_dense_or_quantized_as_given() -> None:
    mask = random_mask(4, 8, NM(2, 4))
    assert isinstance(Sparse(random_quantized(4, 8, GridCase(4)), mask, NM(2, 4)).values, Quantized)
