"""harness/models/bin_weights.py: pickled weights become safetensors, and nothing in them is run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from trinity.harness.models import bin_weights
from trinity.harness.models.model_files import PICKLE, PICKLE_INDEX, index_files
from trinity.harness.sources.sources import resolve
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError


class Runs:
    """Asks for a command to be run when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))


def _weights() -> dict[str, Tensor]:
    shared = torch.arange(6.0).view(2, 3).half()
    return {
        "a.weight": shared,
        "tied.weight": shared,
        "view.weight": torch.arange(12.0).view(3, 4).t()[1:],
        "b.weight": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
    }


def _folder(path: Path, files: Mapping[str, Mapping[str, Any]], **options: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    for name, state in files.items():
        torch.save(dict(state), path / name, **options)
    if len(files) > 1:
        places = {key: name for name, state in files.items() for key in state}
        index = json.dumps({"weight_map": places})
        (path / PICKLE_INDEX).write_text(index, encoding="utf-8")
    return path


def _read(folder: Path) -> dict[str, Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    return found


def _assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "store")


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before torch 1.6"])
def test_a_folder_of_pickles_keeps_every_tensor_bit_for_bit(
    tmp_path: Path, store: StageStore, archive: bool
) -> None:
    folder = _folder(
        tmp_path / "run",
        {PICKLE: _weights()},
        _use_new_zipfile_serialization=archive,
    )
    found = resolve(str(folder), None, store)
    assert found.label == "run"
    _assert_same(_read(found.path), _weights())
    assert {"config.json", "chat_template.jinja"} <= {p.name for p in found.path.iterdir()}


def test_shards_of_pickles_are_all_read(tmp_path: Path, store: StageStore) -> None:
    names = list(_weights())
    halves = {
        f"pytorch_model-0000{n}-of-00002.bin": {k: _weights()[k] for k in names[n - 1 :: 2]}
        for n in (1, 2)
    }
    folder = _folder(tmp_path / "run", halves)
    _assert_same(_read(resolve(str(folder), None, store).path), _weights())
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ConfigError, match=r"names pytorch_model-00002-of-00002\.bin, which is not"):
        resolve(str(folder), None, store)


@pytest.mark.parametrize("limit", [1, 16, 40, 10**6])
def test_no_file_is_larger_than_the_limit_unless_one_tensor_is(tmp_path: Path, limit: int) -> None:
    bin_weights.write_shards(iter(_weights().items()), tmp_path, limit)
    _assert_same(_read(tmp_path), _weights())
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            sizes = [stream.get_tensor(name).nbytes for name in stream.keys()]  # noqa: SIM118
        assert sum(sizes) <= limit or len(sizes) == 1
    index = tmp_path / "model.safetensors.index.json"
    if index.exists():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        assert places.keys() == _weights().keys()
        assert set(places.values()) == {p.name for p in tmp_path.glob("*.safetensors")}


def test_safetensors_beside_pickles_are_the_model(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run", {PICKLE: _weights()})
    (folder / "model.safetensors").write_bytes(b"")
    assert bin_weights.files_of(folder) == ()


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, store: StageStore, archive: bool
) -> None:
    marker = tmp_path / "ran"
    state = {"a.weight": torch.ones(2), "b": Runs(marker)}
    folder = _folder(tmp_path / "run", {PICKLE: state}, _use_new_zipfile_serialization=archive)
    with pytest.raises(ConfigError, match="would run code when it is read"):
        resolve(str(folder), None, store)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"model": {"a": torch.ones(1)}}, "no tensor under model"),
        ({"a": torch.ones(1), "step": 3}, "no tensor under step"),
        ({}, "no tensor under any name"),
    ],
)
def test_what_is_no_state_dict_is_named(
    tmp_path: Path, store: StageStore, state: dict[str, Any], words: str
) -> None:
    folder = _folder(tmp_path / "run", {PICKLE: state})
    with pytest.raises(ConfigError, match=words):
        resolve(str(folder), None, store)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({1: torch.ones(1)}, "1 is no name"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is a sparse_coo tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a' is a valueless"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "'a' is a complex128 tensor"),
    ],
)
def test_what_safetensors_cannot_hold_is_named(
    tmp_path: Path, state: dict[Any, Any], words: str
) -> None:
    torch.save(state, tmp_path / PICKLE)
    with pytest.raises(ConfigError, match=words):
        bin_weights.tensors_of(tmp_path / PICKLE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>sign in</html>", "is a web page"),
        (b"no pickle", "is damaged or cut short"),
    ],
)
def test_another_file_in_a_pickles_place_is_not_called_code(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / PICKLE
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        bin_weights.tensors_of(path)
    assert "PyTorch" not in str(refused.value)
    assert "code" not in str(refused.value)


def test_an_old_pickle_cut_anywhere_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / PICKLE
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="is damaged or cut short"):
            bin_weights.tensors_of(path)


def test_a_stray_file_of_safetensors_does_not_hide_the_model(
    tmp_path: Path, store: StageStore
) -> None:
    folder = _folder(tmp_path / "run", {PICKLE: _weights()})
    (folder / "ema.safetensors").write_bytes(b"")
    _assert_same(_read(resolve(str(folder), None, store).path), _weights())
    (folder / "config.json").write_text('{"transformers_weights": "ema.safetensors"}')
    assert bin_weights.files_of(folder) == ()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_pickle_that_is_cut_short_is_said_to_be_damaged(
    tmp_path: Path, store: StageStore, share: float
) -> None:
    path = _folder(tmp_path / "run", {PICKLE: _weights()}) / PICKLE
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ConfigError, match="is damaged or cut short"):
        resolve(str(path.parent), None, store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../b.bin"}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": "x", "b": 3}}',
    ],
)
def test_an_index_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / PICKLE_INDEX
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="index"):
        index_files(path)
