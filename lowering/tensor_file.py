"""Safetensors files of tensors that are made one at a time, and that a runtime can map.

The library's own writer wants all tensors at once; a model's may be larger than the memory.  And it
begins the data at any multiple of 8, of which IREE maps every eighth and copies all others whole.
https://huggingface.co/docs/safetensors: 8 bytes of the header's length, the header (JSON), bytes.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

# Tensors of wider types come first, so that each is aligned to its own.
NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ORDER = list(NAMES)
ALIGNMENT = 64  # bytes, of where the data begins

Shape = tuple[tuple[int, ...], torch.dtype]


def write_tensors(path: Path, shapes: Mapping[str, Shape], made: Callable[[str], Tensor]) -> None:
    """Write a file.  shapes: of every tensor, and its type   made: a tensor of a name

    Asked for in the order of the file: those first that leave the next one aligned, then by type
    and name.  No file is left if one fails.
    """
    names = sorted(shapes, key=lambda name: _order(name, shapes[name]))
    header, end = {}, 0
    for name in names:
        shape, dtype = shapes[name]
        start, end = end, end + _size(shapes[name])
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    try:
        with path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                tensor = made(name).detach().cpu().contiguous()
                assert (tuple(tensor.shape), tensor.dtype) == shapes[name], name
                stream.write(tensor.flatten().view(torch.uint8).numpy().data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _order(name: str, shape: Shape) -> tuple[bool, int, str]:
    return _size(shape) % ALIGNMENT != 0, ORDER.index(shape[1]), name


def _size(shape: Shape) -> int:
    """Bytes."""
    return prod(shape[0]) * shape[1].itemsize
