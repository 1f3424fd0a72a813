"""Inputs that were made to do harm: refused before they cost anything."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trinity.harness.models.model_config import read_config
from trinity.harness.models.model_files import WeightReader
from trinity.harness.models.torch_files import read as read_pickle
from trinity.harness.recipes import recipe
from trinity.harness.store import stages
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError

BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB + "model: *a11\n", "stand for more than"),
        ("model: &a [*a]\n", "stand for more than"),
        ("model: " + "[" * 5000 + "]" * 5000, "nested deeper"),
        ("model: !!python/object/apply:os.system [id]", "is not YAML"),
        ("model: !!python/name:os.system", "is not YAML"),
    ],
    ids=["bomb", "itself", "deep", "call", "name"],
)
def test_yaml_that_is_more_than_it_seems_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        recipe.read(path, [])


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x" * 300, "\ud800", 5]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: object) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "out.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="none beside it"):
        WeightReader(folder)


@pytest.mark.parametrize("size", [1 << 27, 1 << 40, (1 << 64) - 1])
def test_a_header_that_says_it_is_larger_than_its_file_or_any_header_is_refused(
    tmp_path: Path, size: int
) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}" + bytes(64))
    with pytest.raises(ConfigError, match="damaged or cut short"):
        _ = WeightReader(tmp_path).entries


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_a_number_of_blocks_that_would_fill_the_memory_is_refused(
    tmp_path: Path, kind: str
) -> None:
    config = {"model_type": kind, "num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="more than any model has"):
        read_config(tmp_path)


class _Bad:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/trinity-was-run",)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": _Bad()}, tmp_path / "ckpt_1.pt")
    with pytest.raises(ConfigError, match="would run code"):
        read_pickle(tmp_path / "ckpt_1.pt", "")
    assert not Path("/tmp/trinity-was-run").exists()


def test_a_stage_whose_manifest_leads_out_of_it_is_damaged(tmp_path: Path) -> None:
    """Someone else may write to a shared store: what is read stays in the stage's folder."""
    place = StageStore(tmp_path / "store").fill(
        "kind", {}, lambda stage: (stage / "file").write_text("text") and None
    )
    outside = tmp_path / "outside"
    outside.write_text("text")
    manifest = stages.read_json(place / stages.MANIFEST)
    shutil.move(place / "file", tmp_path / "moved")
    for name in ("../../../../outside", str(outside)):
        manifest["files"] = {name: stages.file_sha256(outside)}
        stages.write_json(place / stages.MANIFEST, manifest)
        assert StageStore(tmp_path / "store").get("kind", {}) is None
    manifest["files"] = {"file": stages.file_sha256(outside)}
    stages.write_json(place / stages.MANIFEST, manifest)
    (place / "file").symlink_to(outside)
    assert StageStore(tmp_path / "store").get("kind", {}) is None
