from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trinity.lowering.tensor_file import NAMES, write_tensors


def test_a_file_has_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, dtype in enumerate(reversed(NAMES)):
        for name in ("z.weight", "a.\u00fcber"):
            shape = (number, 3) if name[0] == "z" else (5,)
            drawn = torch.randint(0, 2, shape, generator=generator)
            tensors[f"{name}.{number}"] = drawn.to(dtype)
    tensors["scalar"] = torch.tensor(1.5)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_tensors(tmp_path / "ours", shapes, tensors.__getitem__)
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    found = load_file(tmp_path / "ours")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    asked: list[str] = []

    def made(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.full((4,), len(asked), dtype=torch.uint8)

    shapes = {name: ((4,), torch.uint8) for name in ("b", "a", "c")}
    write_tensors(tmp_path / "file", shapes, made)
    assert asked == ["a", "b", "c"]
