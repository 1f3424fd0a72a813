import json
import shutil
from pathlib import Path

import pytest

from tests.harness import families
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a byte tokenizer."""
    made = sources.resolve("random:tiny-llama", None, StageStore(tmp_path / "store")).path
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_the_tokenizer_of_a_folder_is_read(folder: Path) -> None:
    assert tokenizer_of(folder)("ab")["input_ids"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_without_a_tokenizer_says_so(tmp_path: Path, family: str) -> None:
    families.save(family, tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        tokenizer_of(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_tokenizer_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=f"{name}: is damaged or cut short"):
        tokenizer_of(folder)


def test_a_tokenizer_of_json_that_is_none_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot load its tokenizer"):
        tokenizer_of(folder)


def test_a_tokenizers_own_code_is_not_run_and_nothing_is_asked(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="never run here"):
        tokenizer_of(folder)


def test_checkpoints_of_a_model_share_its_tokenizer_and_another_vocabulary_is_read(
    folder: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(folder, tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "trinity"}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (checkpoint / "trinity.json").write_text("{}", encoding="utf-8")
    assert tokenizer_of(checkpoint) is tokenizer_of(folder)
    path = checkpoint / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) | {"bos_token": "a"}
    path.write_text(json.dumps(said), encoding="utf-8")
    assert tokenizer_of(checkpoint).bos_token == "a" != tokenizer_of(folder).bos_token
