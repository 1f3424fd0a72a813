"""harness/sources/torch_checkpoints.py: torch.save checkpoints become model folders,
and nothing in them is run.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trinity.harness.sources import torch_checkpoints
from trinity.harness.sources.sources import resolve
from trinity.harness.store.stages import StageStore
from trinity.harness.training.pretrain import write_checkpoint
from trinity.methods.errors import ConfigError


class Runs:
    """Asks for a command to be run when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))


def _save(folder: Path, step: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    shared = torch.arange(6.0).view(2, 3)
    state = {"a.weight": shared, "tied.weight": shared, "ids": torch.arange(3)[None]}
    return write_checkpoint(folder, step, state, {"moments": torch.ones(3), "steps": 10})


def test_every_tensor_of_the_state_dict_is_kept_bit_for_bit(tmp_path: Path) -> None:
    path = _save(tmp_path / "run")
    found = resolve(str(tmp_path / "run"), None, StageStore(tmp_path / "store"))
    tensors = load_file(found.path / "model.safetensors")
    state = torch.load(path, weights_only=True)["model"]
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert (found.path / "config.json").read_text() == "{}"
    assert found.label == "run"


def test_the_file_itself_may_be_named(tmp_path: Path) -> None:
    path = _save(tmp_path / "run", step=10)
    _save(tmp_path / "run", step=20)
    store = StageStore(tmp_path / "store")
    assert (resolve(str(path), None, store).path / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match=r"several checkpoints \(ckpt_10\.pt, ckpt_20\.pt\)"):
        resolve(str(tmp_path / "run"), None, store)


def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "ckpt_1.pt"
    torch.save({"model": {"a.weight": Runs(marker)}}, path)
    with pytest.raises(ConfigError, match="would run code"):
        torch_checkpoints.state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": {}}, r"state dict under 'model', found \['weights'\]"),
        ([torch.ones(2)], "found list"),
        ({"model": {"a": 3}}, "holds no tensor under a"),
    ],
)
def test_a_file_of_another_layout_is_an_error(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "ckpt_1.pt"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=words):
        torch_checkpoints.state_dict(path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = _save(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="is damaged or cut short"):
        torch_checkpoints.state_dict(path)


def test_a_folder_with_safetensors_is_read_from_those(tmp_path: Path) -> None:
    _save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch_checkpoints.checkpoint_file(tmp_path) is None


def test_a_stray_file_of_safetensors_does_not_hide_the_checkpoint(tmp_path: Path) -> None:
    path = _save(tmp_path)
    (tmp_path / "ema.safetensors").write_bytes(b"")
    assert torch_checkpoints.checkpoint_file(tmp_path) == path
