from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness import families
from trinity.harness.models import Decoder, WeightReader, read_config
from trinity.methods.errors import ConfigError, UnsupportedError

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", families.CONFIGS)
def test_every_linear_of_a_block_is_found(tmp_path: Path, family: str) -> None:
    model = families.save(family, tmp_path)
    decoder = Decoder(tmp_path, torch.float32, CPU)
    path = f"{decoder.family.blocks}.0."
    linears = {
        name
        for name, module in model.named_modules()
        if name.startswith(path) and type(module).__name__ in ("Linear", "Conv1D")
    }
    assert set(decoder.layer_names(0)) == linears


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected \*\.safetensors, found none"):
        WeightReader(tmp_path)


def test_a_pickle_is_refused_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ConfigError, match="a pickle, which can run code"):
        WeightReader(tmp_path)


def test_an_unknown_architecture_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedError, match=r"'bert' is not supported.*llama"):
        read_config(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_config(tmp_path)


def test_nan_in_a_weight_is_named(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    decoder = Decoder(tmp_path, torch.float32, CPU)
    decoder.load("model.layers.0")
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN"):
        decoder.load("model.layers.1")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"no tensor 'model\.norm\.weight'"):
        Decoder(tmp_path, torch.float32, CPU).load_outside_blocks()


def test_only_the_asked_block_has_weights(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    decoder = Decoder(tmp_path, torch.float32, CPU)
    decoder.load("model.layers.1")
    real = {n for n, p in decoder.model.named_parameters() if not p.is_meta}
    assert real
    assert all(name.startswith("model.layers.1.") for name in real)
    decoder.unload("model.layers.1")
    assert all(p.is_meta for p in decoder.model.parameters())
