from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness import families
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.models.model_files import WeightReader
from trinity.harness.recipes import recipe
from trinity.harness.runs.outputs import compress_to
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods import registry
from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Sparse


class _Source:
    """Reads `up_proj` weights that are 2:4 already."""

    name = "two-four"
    paper = "test"
    config = MethodConfig
    parts = ("weight",)
    rename = ""

    def load(
        self, tensors: Mapping[str, Tensor], config: MethodConfig
    ) -> Mapping[str, CompressedWeight]:
        return {
            name.removesuffix(".weight") + self.rename: Sparse(Dense(W), W != 0, NM(2, 4))
            for name, W in tensors.items()
            if name.endswith("up_proj.weight")
        }


def _compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any) -> Path:
    monkeypatch.setattr(registry, "get", lambda name: source)
    asked = recipe.parse(
        {
            "model": {"id": str(tmp_path / "model")},
            "compress": {"steps": [{"method": "two-four"}]},
        },
        "test",
    )
    out = tmp_path / "out"
    compress_to(asked, out, StageStore(tmp_path / "store"), Reporter(quiet=True))
    return out


def _save_two_four(folder: Path) -> dict[str, Tensor]:
    families.save("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    for name, W in tensors.items():
        if name.endswith("up_proj.weight"):
            W.view(W.shape[0], -1, 4)[..., 2:] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def test_imported_weights_are_packed_and_the_others_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = _save_two_four(tmp_path / "model")
    found = Checkpoint.open(_compress(tmp_path, monkeypatch, _Source()))
    for name, weight in found.weights():
        assert isinstance(weight, Sparse) == name.endswith("up_proj")
        assert torch.equal(weight.dequantize(), tensors[f"{name}.weight"])
    assert not list((tmp_path / "out").glob("block-*"))


def test_a_weight_for_no_layer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save_two_four(tmp_path / "model")
    source = _Source()
    source.rename = ".extra"
    with pytest.raises(ConfigError, match=r"up_proj\.extra.*does not have"):
        _compress(tmp_path, monkeypatch, source)


def test_a_tensor_is_read_when_it_is_asked_for_and_not_to_see_whether_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save_two_four(tmp_path / "model")
    read: list[str] = []
    whole = WeightReader.read

    def noted(reader: WeightReader, name: str) -> Tensor:
        read.append(name)
        return whole(reader, name)

    class Asks(_Source):
        def load(
            self, tensors: Mapping[str, Tensor], config: MethodConfig
        ) -> Mapping[str, CompressedWeight]:
            read.clear()
            assert "model.norm.weight" in tensors
            assert "model.norm.bias" not in tensors
            assert len(tensors) == len(list(tensors))
            assert read == []
            return {
                "model.layers.0.mlp.up_proj": Dense(tensors["model.layers.0.mlp.up_proj.weight"])
            }

    monkeypatch.setattr(WeightReader, "read", noted)
    _compress(tmp_path, monkeypatch, Asks())
