from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness import families
from trinity.harness.checkpoint import Checkpoint
from trinity.harness.commands import compress_to
from trinity.harness.progress import Reporter
from trinity.harness.store import StageStore
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
    compress_to(
        str(tmp_path / "model"),
        "two-four",
        [],
        "float32",
        tmp_path / "out",
        StageStore(tmp_path / "store"),
        Reporter(quiet=True),
    )
    return tmp_path / "out"


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
    found = Checkpoint(_compress(tmp_path, monkeypatch, _Source()))
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
