"""methods/formats/packing.py."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.methods.samples import (
    GRIDS,
    GridCase,
    assert_same_weight,
    indexed,
    packed_adapters,
    random_mask,
    random_quantized,
    tensors_of,
    with_adapter,
)
from trinity.methods.errors import RecordError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Quantized,
    Sparse,
    Unstructured,
    bits_per_weight,
    format_of,
    pack,
    stored_bytes,
    unpack,
)
from trinity.methods.formats.packing import index_bits

PATTERNS = [
    NM(2, 4), NM(1, 4), NM(3, 4), NM(1, 2), NM(2, 8), NM(4, 8), NM(1, 3), NM(5, 12),
    Unstructured(0.5), Unstructured(0.9),
]  # fmt: skip
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 24), (5, 24), (7, 72)]


def round_trip(weight: CompressedWeight, folder: Path) -> CompressedWeight:
    """The weight after a real file."""
    save_file(pack(weight), folder / "weight.safetensors")
    return unpack(format_of(weight), load_file(folder / "weight.safetensors"))


@pytest.mark.parametrize(("m", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)])
def test_an_index_takes_the_bits_that_count_to_m(m: int, bits: int) -> None:
    assert index_bits(NM(1, m)) == bits


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_dense_weight_survives_its_file(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = Dense(torch.randn(5, 7).to(dtype))
    assert_same_weight(round_trip(weight, tmp_path), weight)


def test_packed_factors_survive_their_file_beside_any_base(tmp_path: Path) -> None:
    pattern = NM(2, 4)
    base = Sparse(random_quantized(12, 16, GridCase(4)), random_mask(12, 16, pattern), pattern)
    for weight in [*packed_adapters(base), *packed_adapters(Dense(torch.randn(12, 16)))]:
        assert_same_weight(round_trip(weight, tmp_path), weight)


def test_scaled_inputs_survive_their_file_and_are_counted(tmp_path: Path) -> None:
    plain, pattern = random_quantized(8, 24, GridCase(4, groups=3)), NM(2, 4)
    scaled = replace(plain, input_scale=(torch.rand(24) + 0.5).half())
    for weight in (scaled, Sparse(scaled, random_mask(8, 24, pattern), pattern)):
        assert_same_weight(round_trip(weight, tmp_path), weight)
    assert stored_bytes(scaled) - stored_bytes(plain) == 2 * 24


def test_quantized_factors_take_the_bits_of_their_codes_and_scales() -> None:
    base, case = Dense(torch.randn(64, 128)), GridCase(4, groups=2, dtype=torch.float16)
    weight = Adapted(base, random_quantized(64, 32, case), random_quantized(32, 128, case))
    codes, scales = 4 * 32 * (64 + 128), 16 * 2 * (64 + 32)
    assert 8 * (stored_bytes(weight) - stored_bytes(base)) == codes + scales


def test_a_pruned_factor_takes_the_bits_of_what_it_keeps() -> None:
    base, A = Dense(torch.randn(64, 128)), torch.randn(32, 128).half()
    B, pattern = torch.randn(64, 32).half(), NM(2, 4)
    weight = Adapted(base, B, Sparse(Dense(A), random_mask(32, 128, pattern), pattern))
    kept = 32 * 128 // 2
    assert 8 * (stored_bytes(weight) - stored_bytes(base)) == 16 * 64 * 32 + (16 + 2) * kept


@pytest.mark.parametrize("case", GRIDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (1, 24), (5, 21), (7, 72)], ids=str)
def test_a_quantized_weight_survives_its_file(
    case: GridCase, shape: tuple[int, int], tmp_path: Path
) -> None:
    weight = random_quantized(*shape, case)
    assert_same_weight(round_trip(weight, tmp_path), weight)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_sparse_quantized_weight_survives_its_file(
    pattern: NM | Unstructured, tmp_path: Path
) -> None:
    for case, (out, d_in) in product(GRIDS, SHAPES):
        values = random_quantized(out, d_in, case)
        weight = Sparse(values, random_mask(out, d_in, pattern), pattern)
        assert_same_weight(round_trip(weight, tmp_path), weight)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_sparse_float_weight_survives_its_file(
    dtype: torch.dtype, pattern: NM | Unstructured, tmp_path: Path
) -> None:
    values = Dense(torch.randn(5, 24).to(dtype))
    weight = Sparse(values, random_mask(5, 24, pattern), pattern)
    assert_same_weight(round_trip(weight, tmp_path), weight)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_an_adapter_survives_its_file_beside_any_weight(
    dtype: torch.dtype, rank: int, tmp_path: Path
) -> None:
    quantized, pattern = random_quantized(5, 24, GridCase(4, groups=3)), NM(2, 4)
    mask = random_mask(5, 24, pattern)
    for base in (Dense(torch.randn(5, 24)), quantized, Sparse(quantized, mask, pattern)):
        weight = with_adapter(base, rank, dtype)
        assert_same_weight(round_trip(weight, tmp_path), weight)


def test_a_kept_zero_and_a_negative_zero_survive(tmp_path: Path) -> None:
    values = torch.tensor([[0.0, -0.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, False, False]])
    weight = round_trip(Sparse(Dense(values), mask, NM(2, 4)), tmp_path)
    found = tensors_of(weight)
    assert torch.equal(found["mask"], mask)
    assert found["values"].signbit().tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_mask_that_keeps_nothing_survives(bits: int, tmp_path: Path) -> None:
    mask = torch.zeros(3, 5, dtype=torch.bool)
    for values in (Dense(torch.randn(3, 5)), random_quantized(3, 5, GridCase(bits))):
        weight = Sparse(values, mask, Unstructured(0.5))
        assert_same_weight(round_trip(weight, tmp_path), weight)


def test_a_transposed_weight_is_stored_like_its_copy(tmp_path: Path) -> None:
    W, pattern = torch.randn(8, 6).T, NM(2, 4)
    mask = random_mask(6, 8, pattern).T.contiguous().T
    for weight in (
        Dense(W),
        Sparse(Dense(W), mask, pattern),
        Adapted(Dense(W), torch.randn(2, 6).T, torch.randn(8, 2).T),
    ):
        assert_same_weight(round_trip(weight, tmp_path), weight)


def test_packing_leaves_a_weight_unchanged() -> None:
    base = Sparse(random_quantized(5, 24, GridCase(4)), random_mask(5, 24, NM(2, 4)), NM(2, 4))
    weight = with_adapter(base, 2, torch.float16)
    before = {name: tensor.clone() for name, tensor in tensors_of(weight).items()}
    pack(weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(weight).items())


def tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file after its header, which is 8 bytes of length and that many."""
    header = int.from_bytes(path.read_bytes()[:8], "little")
    entries = json.loads(path.read_bytes()[8 : 8 + header])
    data = path.stat().st_size - 8 - header
    assert data == max(entry["data_offsets"][1] for entry in entries.values())
    return data


@pytest.mark.parametrize("pattern", [None, *PATTERNS], ids=str)
@pytest.mark.parametrize("adapter", [False, True], ids=["bare", "adapted"])
def test_bits_per_weight_are_the_bytes_on_disk(
    pattern: NM | Unstructured | None, adapter: bool, tmp_path: Path
) -> None:
    kinds: list[Dense | Quantized] = [Dense(torch.randn(5, 24).to(dtype)) for dtype in FLOATS]
    for values in kinds + [random_quantized(5, 24, case) for case in GRIDS]:
        base = Sparse(values, random_mask(5, 24, pattern), pattern) if pattern else values
        weight = with_adapter(base, 2, torch.float16) if adapter else base
        save_file(pack(weight), tmp_path / "weight.safetensors")
        on_disk = tensor_bytes(tmp_path / "weight.safetensors")
        assert stored_bytes(weight) == on_disk
        assert bits_per_weight(weight) == on_disk * 8 / (5 * 24)


def test_bits_of_known_formats_are_what_arithmetic_says() -> None:
    def two_four(values: Dense | None = None) -> CompressedWeight:
        codes = values or random_quantized(64, 128, GridCase(4))
        return Sparse(codes, random_mask(64, 128, NM(2, 4)), NM(2, 4))

    one_scale = 32 / (64 * 128)
    assert bits_per_weight(Dense(torch.ones(64, 128).half())) == 16
    assert bits_per_weight(random_quantized(64, 128, GridCase(3))) == 3 + one_scale
    # Half of the entries, each with 4 bits of code and 2 bits of place.
    assert bits_per_weight(two_four()) == (4 + 2) / 2 + one_scale
    assert bits_per_weight(two_four(Dense(torch.ones(64, 128).half()))) == (16 + 2) / 2
    grouped = random_quantized(64, 128, GridCase(4, False, 4, torch.float16))
    assert bits_per_weight(grouped) == 4 + (16 + 4) * 4 / 128
    adapter = 16 * 8 * (64 + 128) / (64 * 128)
    adapted = with_adapter(random_quantized(64, 128, GridCase(4)), 8, torch.float16)
    assert bits_per_weight(adapted) == 4 + one_scale + adapter


def damaged(weight: CompressedWeight, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The stored tensors with one replaced."""
    return {**pack(weight), name: tensor}


def test_a_missing_tensor_is_named() -> None:
    weight = random_quantized(5, 24, GridCase(4))
    with pytest.raises(RecordError, match="tensor 'weight_scale' is missing; found"):
        unpack(format_of(weight), {"weight_packed": pack(weight)["weight_packed"]})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_stored_codes_that_are_too_few_or_too_many_are_refused(bits: int) -> None:
    weight = random_quantized(5, 24, GridCase(bits))
    packed = pack(weight)["weight_packed"]
    with pytest.raises(RecordError, match="stored weight"):
        unpack(format_of(weight), damaged(weight, "weight_packed", packed[:, :-1]))
    with pytest.raises(RecordError, match="stored weight"):
        unpack(format_of(weight), damaged(weight, "weight_packed", packed[:-1]))


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5)], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
def test_a_sparse_weight_that_lost_values_is_refused(
    pattern: NM | Unstructured, quantized: bool
) -> None:
    values = random_quantized(5, 24, GridCase(4)) if quantized else Dense(torch.randn(5, 24))
    weight = Sparse(values, random_mask(5, 24, pattern), pattern)
    with pytest.raises(RecordError, match="stored weight"):
        unpack(
            format_of(weight),
            damaged(weight, "weight_packed", pack(weight)["weight_packed"][:-1]),
        )


def test_indices_that_repeat_a_place_are_refused() -> None:
    weight = Sparse(Dense(torch.randn(2, 8)), random_mask(2, 8, NM(2, 4)), NM(2, 4))
    with pytest.raises(RecordError, match="cannot be unpacked"):
        unpack(
            format_of(weight),
            damaged(weight, "weight_indices", torch.zeros(2, 1, dtype=torch.uint8)),
        )


def test_indices_outside_their_group_are_refused() -> None:
    weight = Sparse(Dense(torch.randn(2, 6)), random_mask(2, 6, NM(1, 3)), NM(1, 3))
    with pytest.raises(RecordError, match="cannot be unpacked"):
        unpack(
            format_of(weight),
            damaged(weight, "weight_indices", torch.full((2, 1), 15, dtype=torch.uint8)),
        )


def test_tensors_of_another_type_than_the_format_says_are_refused() -> None:
    weight = Dense(torch.randn(2, 6))
    with pytest.raises(RecordError, match=r"expected .*float32.* hold .*float16"):
        unpack(format_of(weight), {"weight": torch.randn(2, 6).half()})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [3, 5])
def test_a_group_index_is_stored_and_counted(tmp_path: Path, groups: int, masked: bool) -> None:
    quantized = indexed(random_quantized(5, 24, GridCase(4, False, 3, torch.float16)), groups)
    pattern = NM(2, 4)
    weight = Sparse(quantized, random_mask(5, 24, pattern), pattern) if masked else quantized
    assert_same_weight(round_trip(weight, tmp_path), weight)
    without = sum(tensor.nbytes for name, tensor in pack(weight).items() if "g_idx" not in name)
    assert stored_bytes(weight) == without + 4 * 24


def test_a_stored_weight_that_lost_its_index_is_refused() -> None:
    weight = indexed(random_quantized(5, 24, GridCase(4, False, 3)), 3)
    parts = {name: tensor for name, tensor in pack(weight).items() if "g_idx" not in name}
    with pytest.raises(RecordError, match="weight_g_idx"):
        unpack(format_of(weight), parts)
