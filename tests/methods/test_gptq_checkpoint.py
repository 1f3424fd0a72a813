"""methods/gptq_checkpoint.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.samples import (
    GridCase,
    assert_same_weight,
    random_mask,
    random_quantized,
    with_adapter,
)
from tests.oracles import gptq_format
from trinity.methods.contract import StoredTensors
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.formats import NM, Dense, Quantized, Sparse, Unstructured
from trinity.methods.gptq_checkpoint import (
    GPTQ_CHECKPOINT,
    GptqCheckpointConfig,
    load,
    pack_stream,
    read_layer,
    unpack_stream,
    write_layer,
)
from trinity.methods.gptq_settings import LayerSettings, Version

OUT, IN = 32, 64
CASES = [
    GridCase(bits, symmetric, groups, torch.float16)
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for groups in (1, 4)
]


def sample(case: GridCase, *, by_index: bool = False) -> Quantized:
    """Zero points that both versions can store."""
    found = random_quantized(OUT, IN, case)
    zero = None if found.zero_point is None else found.zero_point.clamp(min=1)
    index = torch.randint(0, case.groups, (IN,), dtype=torch.int32) if by_index else None
    if index is not None:
        index[0] = case.groups - 1  # neither consecutive nor all zero
    return Quantized(found.codes, found.scale, zero, case.bits, index)


def decoded(parts: dict[str, Tensor], bits: int, version: Version) -> np.ndarray:
    return gptq_format.decode(
        parts["qweight"].numpy(),
        parts["qzeros"].numpy(),
        parts["scales"].double().numpy(),
        parts["g_idx"].tolist(),
        bits,
        1 if version == "gptq" else 0,
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_stream_of_codes_is_one_string_of_bits_down_each_column(bits: int) -> None:
    values = torch.randint(0, 2**bits, (64, 3), dtype=torch.uint8)
    packed = pack_stream(values, bits)
    for column in range(3):
        assert packed[:, column].tolist() == gptq_format.words_of(values[:, column].tolist(), bits)
    assert torch.equal(unpack_stream(packed, bits, 64), values)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_written_decodes_to_the_weight_and_reads_back_bit_for_bit(
    case: GridCase, by_index: bool, version: Version
) -> None:
    weight = sample(case, by_index=by_index and case.groups > 1)
    parts = write_layer(weight, version)
    assert parts["qweight"].shape == (IN * case.bits // 32, OUT)
    assert parts["qzeros"].shape == (case.groups, OUT * case.bits // 32)
    expected = weight.dequantize().double().numpy()
    np.testing.assert_allclose(decoded(parts, case.bits, version), expected, rtol=1e-6)
    assert_same_weight(read_layer(parts, version), weight)


def test_the_first_version_stores_zero_points_less_one() -> None:
    weight = sample(GridCase(4, True, 1, torch.float16))
    assert write_layer(weight, "gptq")["qzeros"].tolist() == [[0x77777777] * 4]
    found = write_layer(weight, "gptq_v2")["qzeros"].numpy().view(np.uint32).tolist()
    assert found == [[0x88888888] * 4]


def test_a_zero_point_of_zero_is_not_written_in_the_first_version() -> None:
    weight = sample(GridCase(4, False, 1, torch.float16))
    assert weight.zero_point is not None
    weight.zero_point[3] = 0
    with pytest.raises(UnsupportedError, match="Export as gptq_v2"):
        write_layer(weight, "gptq")
    assert_same_weight(read_layer(write_layer(weight, "gptq_v2"), "gptq_v2"), weight)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_that_borrowed_from_its_neighbour_is_read_if_the_writer_is_known(
    bits: int,
) -> None:
    weight = sample(GridCase(bits, False, 4, torch.float16))
    assert weight.zero_point is not None
    weight.zero_point[::3] = 0
    parts = write_layer(weight, "gptq_v2")
    # GPTQModel subtracts one from every field by one subtraction a word.
    ones = sum(1 << place for place in range(0, 32, bits))
    parts["qzeros"] = parts["qzeros"] - ones
    assert_same_weight(read_layer(parts, "gptq", LayerSettings(borrows=True)), weight)
    with pytest.raises(UnsupportedError, match=rf"qzeros hold {2**bits - 1}.*Save.*as gptq_v2"):
        read_layer(parts, "gptq")


def test_symmetric_zero_points_of_the_other_version_are_noticed() -> None:
    weight = sample(GridCase(4, True, 1, torch.float16))
    with pytest.raises(ConfigError, match=r"every stored zero point is 8.*gptq_v2"):
        read_layer(write_layer(weight, "gptq_v2"), "gptq")


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5)], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_pruned_entries_are_written_as_the_code_of_zero(
    pattern: NM | Unstructured, symmetric: bool
) -> None:
    weight = Sparse(
        sample(GridCase(4, symmetric, 4, torch.float16)), random_mask(OUT, IN, pattern), pattern
    )
    found = read_layer(write_layer(weight, "gptq"), "gptq")
    assert torch.equal(found.dequantize(), weight.dequantize())


def test_one_scale_for_the_tensor_is_written_for_every_output() -> None:
    weight = sample(GridCase(4, True, 0, torch.float16))
    found = read_layer(write_layer(weight, "gptq"), "gptq")
    assert torch.equal(found.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (lambda: Dense(torch.randn(OUT, IN)), "quantized weights only, not dense"),
        (
            lambda: with_adapter(sample(CASES[0]), 2, torch.float16),
            "quantized weights only, not adapted",
        ),
        (lambda: random_quantized(OUT, 20, GridCase(3, True, 1, torch.float16)), "words of 32"),
        (lambda: random_quantized(10, IN, GridCase(4, True, 1, torch.float16)), "words of 32"),
        (lambda: random_quantized(OUT, IN, GridCase(4, True, 1)), "scale_dtype: float16"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(weight, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnsupportedError, match=reason):
        write_layer(weight(), "gptq")


@pytest.mark.parametrize("absent", ["qweight", "qzeros", "scales"])
def test_a_missing_part_is_named_with_its_layer(absent: str) -> None:
    parts = write_layer(sample(CASES[0]), "gptq")
    tensors = {f"a.b.{name}": tensor for name, tensor in parts.items() if name != absent}
    if absent == "qweight":
        with pytest.raises(ConfigError, match=r"no tensor is called '<layer>\.qweight'"):
            load(StoredTensors(tensors), "gptq")
        return
    with pytest.raises(ConfigError, match=f"a\\.b: gptq-checkpoint: {absent} is missing"):
        load(StoredTensors(tensors), "gptq")


def test_shapes_that_do_not_fit_are_refused_with_all_of_them() -> None:
    parts = write_layer(sample(CASES[0]), "gptq")
    for name in ("qweight", "qzeros", "g_idx"):
        damaged = {**parts, name: parts[name][:-1]}
        with pytest.raises(ConfigError, match=r"are no linear of 2, 3, 4, 8 bits"):
            read_layer(damaged, "gptq")
    with pytest.raises(ConfigError, match="are no linear"):
        read_layer({**parts, "qweight": parts["qweight"].float()}, "gptq")


def test_an_index_that_is_left_out_or_all_zero_means_consecutive_groups() -> None:
    weight = sample(GridCase(4, True, 4, torch.float16))
    parts = write_layer(weight, "gptq")
    without = {name: tensor for name, tensor in parts.items() if name != "g_idx"}
    assert_same_weight(read_layer(without, "gptq"), weight)
    parts["g_idx"] = torch.zeros_like(parts["g_idx"])
    assert_same_weight(read_layer(parts, "gptq"), weight)


def test_a_ragged_last_group_is_read_by_index() -> None:
    index = (torch.arange(IN) // 24).to(torch.int32)
    weight = sample(GridCase(4, True, 1, torch.float16))
    ragged = Quantized(weight.codes, torch.rand(OUT, 3).half() + 0.1, None, 4, index)
    assert_same_weight(read_layer(write_layer(ragged, "gptq"), "gptq"), ragged)


def test_every_layer_of_a_checkpoint_is_found_under_its_name() -> None:
    tensors = {"lm_head.weight": torch.randn(4, 4)}
    for name in ("layers.0.up", "layers.1.up"):
        parts = write_layer(sample(CASES[1]), "gptq")
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    found = GPTQ_CHECKPOINT.load(StoredTensors(tensors), GptqCheckpointConfig())
    assert sorted(found) == ["layers.0.up", "layers.1.up"]


@pytest.mark.parametrize("by_index", [False, True])
def test_scales_of_inputs_are_folded_where_a_group_shares_them(by_index: bool) -> None:
    base = sample(GridCase(4, True, 4, torch.float16), by_index=by_index)
    assert base.by_input(base.scale).shape == (OUT, IN)
    index = base.group_index if by_index else torch.arange(IN) // (IN // 4)
    assert index is not None
    inputs = torch.tensor([0.25, 1.0, 2.0, 0.5])[index.long()].half()
    weight = replace(base, input_scale=inputs)
    found = read_layer(write_layer(weight, "gptq"), "gptq")
    assert torch.equal(found.dequantize(), weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_of_inputs_that_differ_in_a_group_are_refused_for_what_they_are(
    dtype: torch.dtype,
) -> None:
    inputs = torch.ones(IN)
    inputs[3] = 0.5
    weight = replace(random_quantized(OUT, IN, GridCase(4, dtype=dtype)), input_scale=inputs)
    with pytest.raises(UnsupportedError, match=r"no scales of inputs.*from 0\.5 to 1.*huggingface"):
        write_layer(weight, "gptq")
