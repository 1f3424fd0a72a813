"""Safetensors files of tensors that are made one at a time, as the library would write them.

The library's own writer wants all tensors at once; a model's may be larger than the memory.
https://huggingface.co/docs/safetensors: 8 bytes of the header's length, the header (JSON), bytes.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

# In the library's order: tensors of wider types come first, so that each is aligned.
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
ALIGNMENT = 8

Shape = tuple[tuple[int, ...], torch.dtype]


def write_tensors(path: Path, shapes: Mapping[str, Shape], made: Callable[[str], Tensor]) -> None:
    """Write a file.  shapes: of every tensor, and its type   made: a tensor of a name

    Asked for in the order of the file: by type, then by name.  No file is left if one fails.
    """
    names = sorted(shapes, key=lambda name: (ORDER.index(shapes[name][1]), name))
    header, end = {}, 0
    for name in names:
        shape, dtype = shapes[name]
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
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
