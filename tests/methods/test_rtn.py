"""methods/rtn.py."""

from typing import Any

import pytest
import torch

from tests.oracles.quantization import nearest_on_grid
from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Quantized, Sparse
from trinity.methods.magnitude import MAGNITUDE, MagnitudeConfig
from trinity.methods.rtn import RTN, RtnConfig, absmax_scale, compress, minmax_range, scale_shape

GROUPS = ["tensor", "channel", 8]


def config(**options: Any) -> RtnConfig:
    """Float32 scales unless a test says otherwise, so that bounds hold exactly."""
    return RtnConfig.model_validate({"group_size": "channel", "scale_dtype": "float32", **options})


def groups_of(W: torch.Tensor, quantized: Quantized) -> list[tuple[list[float], list[float]]]:
    """The (original, decoded) numbers of every group that shares a scale."""
    decoded = quantized.dequantize()
    if quantized.scale.shape == (1, 1):
        return [(W.flatten().tolist(), decoded.flatten().tolist())]
    size = quantized.group_size
    return [
        (W[i, j : j + size].tolist(), decoded[i, j : j + size].tolist())
        for i in range(W.shape[0])
        for j in range(0, W.shape[1], size)
    ]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", GROUPS)
def test_symmetric_rounds_to_the_nearest_multiple_of_absmax_over_the_largest_code(
    bits: int, group_size: str | int
) -> None:
    W = torch.randn(4, 16)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for group, decoded in groups_of(W, compress(W, config(bits=bits, group_size=group_size))):
        scale = max(map(abs, group)) / high
        for w, found in zip(group, decoded, strict=True):
            best = nearest_on_grid(w, scale, 0, low, high)
            assert abs(found - w) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", GROUPS)
def test_asymmetric_rounds_to_the_nearest_point_of_the_min_max_grid(
    bits: int, group_size: str | int
) -> None:
    W = torch.randn(4, 16) + 0.7
    options = config(bits=bits, group_size=group_size, symmetric=False)
    for group, decoded in groups_of(W, compress(W, options)):
        low, high = min(*group, 0.0), max(*group, 0.0)
        scale = (high - low) / (2**bits - 1)
        zero_point = round(-low / scale)
        for w, found in zip(group, decoded, strict=True):
            best = nearest_on_grid(w, scale, zero_point, 0, 2**bits - 1)
            assert abs(found - w) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUPS)
def test_a_group_has_at_most_two_to_the_bits_values(symmetric: bool, group_size: str | int) -> None:
    W = torch.randn(4, 64) ** 3
    group_size = 32 if group_size == 8 else group_size
    options = config(bits=2, group_size=group_size, symmetric=symmetric)
    for _, decoded in groups_of(W, compress(W, options)):
        assert len(set(decoded)) <= 4


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_weight_moves_by_more_than_half_a_step(bits: int, symmetric: bool) -> None:
    W = torch.randn(8, 32)
    quantized = compress(W, config(bits=bits, symmetric=symmetric))
    error = (quantized.dequantize() - W).abs()
    assert (error <= quantized.scale * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_stays_zero(symmetric: bool) -> None:
    for shift in (-3.0, 0.0, 3.0):
        W = torch.randn(4, 16) + shift
        W[:, ::3] = 0
        assert not compress(W, config(symmetric=symmetric)).dequantize()[:, ::3].any()


def test_the_largest_magnitude_keeps_its_value_and_its_sign() -> None:
    W = torch.randn(5, 16)
    decoded = compress(W, config()).dequantize()
    at = W.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(decoded.gather(1, at), W.gather(1, at))


def test_more_bits_leave_less_error_and_smaller_groups_do_too() -> None:
    W = torch.randn(16, 64)

    def error(**options: Any) -> float:
        return float((compress(W, config(**options)).dequantize() - W).square().sum())

    by_bits = [error(bits=bits) for bits in (2, 3, 4, 8)]
    assert by_bits == sorted(by_bits, reverse=True)
    by_group = [error(group_size=size) for size in ("tensor", "channel", 16, 4)]
    assert by_group == sorted(by_group, reverse=True)


def test_quantizing_what_is_on_the_grid_changes_nothing() -> None:
    decoded = compress(torch.randn(6, 32), config(bits=3, group_size=8)).dequantize()
    again = compress(decoded, config(bits=3, group_size=8)).dequantize()
    torch.testing.assert_close(again, decoded, rtol=1e-6, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_zero_rows_and_layers_decode_to_zero(symmetric: bool) -> None:
    W = torch.randn(4, 16)
    W[1] = 0
    options = config(symmetric=symmetric)
    assert not compress(W, options).dequantize()[1].any()
    assert not compress(torch.zeros(4, 16), options).dequantize().any()


@pytest.mark.parametrize("value", [0.3, -0.3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_weight_is_exact_up_to_float32(value: float, symmetric: bool) -> None:
    W = torch.full((3, 8), value)
    decoded = compress(W, config(symmetric=symmetric)).dequantize()
    torch.testing.assert_close(decoded, W, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("group_size", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_single_row_or_column_is_quantized_too(
    shape: tuple[int, int], group_size: str, symmetric: bool
) -> None:
    W = torch.randn(shape)
    quantized = compress(W, config(bits=8, group_size=group_size, symmetric=symmetric))
    # 8 bits over a range of at most a few units.
    torch.testing.assert_close(quantized.dequantize(), W, atol=0.02, rtol=0)


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_computed_with_the_scale_that_is_stored(
    scale_dtype: str, symmetric: bool
) -> None:
    W = torch.randn(6, 32)
    quantized = compress(W, config(bits=4, scale_dtype=scale_dtype, symmetric=symmetric))
    assert str(quantized.scale.dtype) == f"torch.{scale_dtype}"
    low, high = (-8, 7) if symmetric else (0, 15)
    decoded = quantized.dequantize()
    for i in range(6):
        zero = 0 if quantized.zero_point is None else int(quantized.zero_point[i, 0])
        for j in range(32):
            best = nearest_on_grid(float(W[i, j]), float(quantized.scale[i, 0]), zero, low, high)
            assert abs(float(decoded[i, j] - W[i, j])) == pytest.approx(best, abs=1e-6)


def test_the_zero_point_is_that_of_the_scale_that_is_stored() -> None:
    W = torch.randn(64, 32)
    quantized = compress(W, config(bits=8, scale_dtype="bfloat16", symmetric=False))
    assert quantized.zero_point is not None
    for row, scale, zero_point in zip(W, quantized.scale, quantized.zero_point, strict=True):
        assert int(zero_point) == round(-min(float(row.min()), 0.0) / float(scale))


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_too_small_for_a_float16_scale_are_refused_with_advice(symmetric: bool) -> None:
    W = torch.randn(4, 16) * 1e-9
    W[:, 0] = 0
    with pytest.raises(ConfigError, match=r"scale: .* torch\.float16.* store scales as float32"):
        compress(W, config(scale_dtype="float16", symmetric=symmetric))
    decoded = compress(W, config(symmetric=symmetric, bits=8)).dequantize()
    torch.testing.assert_close(decoded, W, atol=float(W.abs().max()) / 100, rtol=0)


def test_weights_too_large_for_a_float16_scale_are_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match=r"torch\.float16.* store scales as float32"):
        compress(torch.full((2, 8), 1e7), config(scale_dtype="float16"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_quantized_as_their_float32_values(dtype: torch.dtype) -> None:
    W = torch.randn(4, 16).to(dtype)
    ours = RTN.compress(W.float(), Dense(W), LayerStats(), config(bits=3))
    theirs = RTN.compress(W.float(), Dense(W.float()), LayerStats(), config(bits=3))
    assert torch.equal(ours.dequantize(), theirs.dequantize())


@pytest.mark.parametrize(
    ("group_size", "shape"), [("tensor", (1, 1)), ("channel", (4, 1)), (16, (4, 1)), (8, (4, 2))]
)
def test_the_scale_has_one_entry_for_what_shares_it(
    group_size: str | int, shape: tuple[int, int]
) -> None:
    quantized = compress(torch.randn(4, 16), config(group_size=group_size))
    assert quantized.scale.shape == shape


def test_a_group_that_does_not_divide_is_a_problem_and_refused() -> None:
    options = config(group_size=12)
    assert RTN.problem((4, 16), options) is not None
    assert "group_size 12 does not divide in = 16" in (RTN.problem((4, 16), options) or "")
    with pytest.raises(ConfigError, match="rtn: group_size 12 does not divide in = 16"):
        compress(torch.randn(4, 16), options)
    assert RTN.problem((4, 24), options) is None


def test_a_ragged_layer_goes_by_channel_only_where_the_recipe_says_so() -> None:
    options = config(group_size=12, ragged="channel")
    assert RTN.problem((4, 16), options) is None
    assert scale_shape((4, 16), options) == (4, 1)
    assert scale_shape((4, 24), options) == (4, 2)


def test_the_range_always_holds_zero() -> None:
    low, high = minmax_range(torch.tensor([[1.0, 2.0], [-2.0, -1.0], [-1.0, 1.0]]), (3, 1))
    assert low.flatten().tolist() == [0, -2, -1]
    assert high.flatten().tolist() == [2, 0, 1]


def test_the_scale_grows_with_the_weights() -> None:
    W = torch.randn(4, 16)
    assert torch.equal(absmax_scale(4 * W, (4, 2), 4), 4 * absmax_scale(W, (4, 2), 4))


def test_pruned_weights_do_not_widen_the_range() -> None:
    W = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    mask = torch.tensor([[False, False, True, True]])
    sparse = RTN.compress(W, Sparse(Dense(W), mask, NM(2, 4)), LayerStats(), config())
    assert sparse.dequantize().tolist() == [[0, 0, 0.5, 0.5]]


def test_rounding_then_pruning_keeps_the_codes_and_takes_the_mask_of_the_original() -> None:
    W, pruning = torch.randn(4, 16), MagnitudeConfig(pattern=NM(2, 4))
    rounded = RTN.compress(W, Dense(W), LayerStats(), config())
    both = MAGNITUDE.compress(W, rounded, LayerStats(), pruning)
    alone = MAGNITUDE.compress(W, Dense(W), LayerStats(), pruning)
    assert isinstance(both, Sparse)
    assert isinstance(alone, Sparse)
    assert torch.equal(both.mask, alone.mask)
    assert torch.equal(both.dequantize(), rounded.dequantize() * both.mask)


def test_quantizing_twice_is_refused() -> None:
    W = torch.randn(4, 16)
    once = RTN.compress(W, Dense(W), LayerStats(), config())
    with pytest.raises(ConfigError, match=r"rtn: an earlier step already quantized"):
        RTN.compress(W, once, LayerStats(), config())


def test_inputs_are_left_unchanged() -> None:
    W = torch.randn(4, 16)
    before = W.clone()
    for symmetric in (True, False):
        RTN.compress(W, Dense(W), LayerStats(), config(symmetric=symmetric))
    assert torch.equal(W, before)


@pytest.mark.parametrize(
    "options",
    [{"bits": 5}, {"group_size": 0}, {"group_size": "row"}, {"scale_dtype": "int8"}, {"bitz": 4}],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method 'rtn'"):
        registry.configure("rtn", options)
