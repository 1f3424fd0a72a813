"""What existing formats store, byte for byte: nobody's checkpoint may change its meaning."""

import hashlib
import json

import pytest
import torch

from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Quantized,
    Sparse,
    Transposed,
    Unstructured,
    format_of,
    pack,
)

OUT, IN = 6, 24


def numbers(rows: int, columns: int) -> torch.Tensor:
    """Multiples of 1/8 in -4 .. 4, exact in every float type, without a pattern that repeats."""
    steps = torch.arange(rows * columns, dtype=torch.int64)
    return (steps * steps * 7 % 65 - 32).view(rows, columns).float() / 8


def quantized(rows: int, columns: int, bits: int, symmetric: bool, groups: int) -> Quantized:
    """Codes over the whole range, scales that are powers of two."""
    steps = torch.arange(rows * columns).view(rows, columns)
    codes = steps * steps * 5 % 2**bits
    scale = 2.0 ** -(torch.arange(rows * groups).view(rows, groups) % 5)
    if symmetric:
        return Quantized((codes - 2 ** (bits - 1)).to(torch.int8), scale.half(), None, bits)
    zero_point = (torch.arange(rows * groups).view(rows, groups) % 2**bits).to(torch.uint8)
    return Quantized(codes.to(torch.uint8), scale, zero_point, bits)


def weights() -> dict[str, CompressedWeight]:
    """One weight of every kind that versions 1 and 2 of a checkpoint hold."""
    index = (torch.arange(IN, dtype=torch.int32) * 5) % 3
    two_four = (torch.arange(OUT * IN) * 3 // 4 % 2 == 0).view(OUT, IN // 4, 4)
    two_four = torch.stack([two_four[..., 0], two_four[..., 1]], -1)
    mask = torch.cat([two_four, ~two_four], -1).view(OUT, IN)
    loose = numbers(OUT, IN) > 0
    grid = quantized(OUT, IN, 4, True, 3)
    found: dict[str, CompressedWeight] = {
        f"{'signed' if symmetric else 'unsigned'} {bits} bits": quantized(
            OUT, IN, bits, symmetric, 3
        )
        for bits in (2, 3, 4, 8)
        for symmetric in (True, False)
    }
    floats = Dense(numbers(OUT, IN).half())
    by_index = Quantized(grid.codes, grid.scale, None, 4, index)
    scaled = Quantized(grid.codes, grid.scale, None, 4, None, torch.full((IN,), 0.5))
    pruned = Sparse(grid, mask, NM(2, 4))
    column = quantized(4, OUT, 4, True, 3)
    return found | {
        "floats": floats,
        "by index": by_index,
        "scaled inputs": scaled,
        "2:4 floats": Sparse(floats, mask, NM(2, 4)),
        "2:4 codes": pruned,
        "loose floats": Sparse(floats, loose, Unstructured(0.5)),
        "loose codes": Sparse(quantized(OUT, IN, 3, False, 3), loose, Unstructured(0.5)),
        "plain factors": Adapted(pruned, numbers(OUT, 4), numbers(4, IN)),
        "packed factors": Adapted(pruned, Transposed(column), quantized(4, IN, 4, True, 3)),
    }


def digest(weight: CompressedWeight) -> str:
    """Of the format's JSON and of the name, type, shape and bytes of every tensor."""
    text = hashlib.sha256(json.dumps(format_of(weight).to_json(), sort_keys=True).encode())
    for name, tensor in sorted(pack(weight).items()):
        text.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        text.update(tensor.view(torch.uint8).numpy().tobytes())
    return text.hexdigest()[:16]


# Of the code before values became kinds of their own (commit cc657e6).
STORED = {
    "signed 2 bits": "e94ae1e3deca6be3",
    "unsigned 2 bits": "703be393d253e48f",
    "signed 3 bits": "d9d2762098ac4a71",
    "unsigned 3 bits": "d41595ed8b10e0e6",
    "signed 4 bits": "ea5f03b380beb80a",
    "unsigned 4 bits": "de2e599f11695e64",
    "signed 8 bits": "3a305230d9269559",
    "unsigned 8 bits": "19a55714128a062a",
    "floats": "d020d777a74d22d5",
    "by index": "97f73ac1b5624436",
    "scaled inputs": "fc2952e70d3fc424",
    "2:4 floats": "1ec570ed5fa91f8b",
    "2:4 codes": "119a0fd1a25fb516",
    "loose floats": "39779eca1a2d75a7",
    "loose codes": "756d800db922dadc",
    "plain factors": "4af5508ccadd961e",
    "packed factors": "c89fd2aa5e1c8290",
}


@pytest.mark.parametrize("name", weights())
def test_the_stored_bytes_and_the_json_of_a_format_never_change(name: str) -> None:
    assert digest(weights()[name]) == STORED[name]


def test_every_kind_of_weight_has_its_digest() -> None:
    assert set(STORED) == set(weights())
