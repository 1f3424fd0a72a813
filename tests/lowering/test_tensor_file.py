import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trinity.lowering.tensor_file import ALIGNMENT, NAMES, write_tensors


def test_the_library_reads_what_was_written_of_every_type(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, dtype in enumerate(reversed(NAMES)):
        for name in ("z.weight", "a.\u00fcber"):
            shape = (number, 3) if name[0] == "z" else (5,)
            drawn = torch.randint(0, 2, shape, generator=generator)
            tensors[f"{name}.{number}"] = drawn.to(dtype)
    tensors["scalar"] = torch.tensor(1.5)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_tensors(tmp_path / "file", shapes, tensors.__getitem__)
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("length", range(1, 80, 7))
def test_tensors_begin_where_a_runtime_maps_them(tmp_path: Path, length: int) -> None:
    shapes = {
        "a" * length: ((3, 5), torch.float32),  # 60 bytes: the next would be out of line
        "b": ((64,), torch.uint8),
        "c": ((16, 8), torch.float32),
        "d": ((7,), torch.uint8),
    }
    write_tensors(
        tmp_path / "file", shapes, lambda name: torch.zeros(shapes[name][0], dtype=shapes[name][1])
    )
    content = (tmp_path / "file").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    begins = {name: 8 + size + at["data_offsets"][0] for name, at in header.items()}
    assert begins["b"] % ALIGNMENT == begins["c"] % ALIGNMENT == 0


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    asked: list[str] = []

    def made(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.full((4,), len(asked), dtype=torch.uint8)

    shapes = {name: ((4,), torch.uint8) for name in ("b", "a", "c")}
    write_tensors(tmp_path / "file", shapes, made)
    assert asked == ["a", "b", "c"]
