import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.harness import families, quirks
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.checkpoints.dequantized import Dequantized
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models import folders
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import Dense

IDS = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(1))


def _compressed(tmp_path: Path, family: str, steps: list[dict[str, object]]) -> Path:
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    made = plan.make(CompressSpec.model_validate({"steps": steps}), decoder.layer_shapes())
    blocks = Walk(decoder, made, IDS, StageStore(tmp_path / "store"), {}).run(lambda d, o: None)
    folder = tmp_path / "compressed"
    folder.mkdir()
    checkpoint.write(folder, decoder, blocks, {"recipe": {}})
    return folder


@pytest.mark.parametrize("family", families.CONFIGS)
def test_a_dense_checkpoint_is_the_model(tmp_path: Path, family: str) -> None:
    model = families.save(family, tmp_path / "model")
    loaded = Checkpoint.open(_compressed(tmp_path, family, [])).load_model()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_compressed_checkpoint_loads_its_dequantized_weights(tmp_path: Path, family: str) -> None:
    model = families.save(family, tmp_path / "model")
    found = Checkpoint.open(_compressed(tmp_path, family, [{"method": "slim", "pattern": "2:4"}]))
    for name, weight in found.weights():
        linear = model.get_submodule(name)
        values = weight.dequantize()
        linear.weight.data = values.t().contiguous() if family == "gpt2" else values
    with torch.no_grad():
        assert torch.equal(found.load_model()(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    "steps",
    [
        [{"method": "nf4", "group_size": 16, "scale_dtype": "float8"}],
        [{"method": "magnitude", "pattern": "2:4"}, {"method": "nvfp4"}],
        [{"method": "fp8"}, {"method": "slim-lora"}],
    ],
)
def test_weights_of_tables_are_measured_in_torch_as_what_they_stand_for(
    steps: list[dict[str, object]], tmp_path: Path
) -> None:
    model = families.save("llama", tmp_path / "model")
    found = Checkpoint.open(_compressed(tmp_path, "llama", steps))
    assert {of.values.kind for of in found.formats.values()} == {"codebook"}
    for name, weight in found.weights():
        model.get_submodule(name).weight.data = weight.dequantize()
    engine = Dequantized(found, torch.device("cpu")).load()
    assert engine.path == "simulated"
    with torch.no_grad():
        assert torch.equal(engine.model(IDS).logits, model(IDS).logits)


def test_a_reading_gives_each_layer_when_it_is_asked_for_and_others_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    found = Checkpoint.open(_compressed(tmp_path, "llama", [{"method": "rtn", "group_size": 16}]))
    read: list[str] = []
    weight = Checkpoint.weight
    monkeypatch.setattr(Checkpoint, "weight", lambda c, name: read.append(name) or weight(c, name))
    head = Dense(torch.ones(2, 2))
    reading = found.reading({"lm_head": head})
    assert list(reading) == [*found.formats, "lm_head"]
    assert len(reading) == len(found.formats) + 1
    assert read == []
    assert reading["lm_head"] is head
    last = list(found.formats)[-1]
    assert reading[last] is not reading[last]  # none is kept
    assert read == [last] * 2
    with pytest.raises(KeyError):
        reading["model.norm"]


def test_bits_per_weight_are_counted_from_the_files(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "slim", "pattern": "2:4", "rank": 4}])
    found = Checkpoint.open(folder)
    stored = weights = 0
    for path in folder.glob("model-block-*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            stored += sum(stream.get_tensor(name).nbytes for name in stream.keys())  # noqa: SIM118  # not a dict
    for layout in found.formats.values():
        weights += layout.shape[0] * layout.shape[1]
    assert found.bits_per_weight == 8 * stored / weights
    assert found.stored_bytes()["linears"] == stored


def test_the_files_hold_no_dense_copy_of_a_packed_weight(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "slim", "pattern": "2:4"}])
    shapes = {layout.shape for layout in Checkpoint.open(folder).formats.values()}
    for path in folder.glob("model-block-*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  # not a dict
                tensor = stream.get_tensor(name)
                assert not (tensor.is_floating_point() and tuple(tensor.shape) in shapes), name


def test_it_says_what_it_is(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "rtn", "group_size": 16}])
    assert folders.is_compressed(folder)
    assert not folders.is_compressed(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "trinity"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert all((folder / name).is_file() for name in index["weight_map"].values())


def test_a_newer_checkpoint_says_to_upgrade(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [])
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecordError, match="Upgrade"):
        Checkpoint.open(folder)


def test_a_checkpoint_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [])
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(RecordError, match="incomplete"):
        Checkpoint.open(folder)


def test_a_head_of_its_own_is_said_in_the_configuration_that_modules_are_made_of(
    tmp_path: Path,
) -> None:
    quirks.save("tied, head of its own in the file", tmp_path / "model")
    found = Checkpoint.open(_compressed(tmp_path, "llama", []))
    config = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False
    model = found.model_outside()
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_a_block_that_is_cut_short_is_named(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "rtn", "group_size": 16}])
    path = folder / "model-block-00001.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RecordError, match=r"model-block-00001\.safetensors: is damaged"):
        Checkpoint.open(folder).load_model()


def test_a_stored_number_that_is_none_is_named(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [])
    path = folder / "model-block-00001.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    key = next(key for key in tensors if key.startswith(name.removesuffix("weight")))
    tensors[key].flatten()[3] = float("inf")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj.*NaN or infinity"):
        Checkpoint.open(folder).load_model()


def test_a_weight_too_large_for_the_models_type_is_named(tmp_path: Path) -> None:
    """Its scale is a number of the type, the scale times its code is none."""
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "rtn", "group_size": 16}])
    path = folder / "model-block-00001.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "up_proj" in key and tensors[key].is_floating_point())
    tensors[key].fill_(6e4)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}), "utf-8")
    with pytest.raises(ConfigError, match=r"weight of model\.layers\.1.*float16 cannot hold"):
        Checkpoint.open(folder).load_model()


def _edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    change(data)
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


Q_PROJ = "model.layers.0.self_attn.q_proj"
MISFITS: dict[str, Callable[[Any], object]] = {
    "no layers": lambda config: config["quantization_config"].pop("layers"),
    "a list of layers": lambda config: config["quantization_config"].update(layers=["x"]),
    "another shape": lambda config: config["quantization_config"]["layers"][Q_PROJ].update(
        shape=[16, 32]
    ),
    "a type of codes": lambda config: config.update(dtype="int8"),
    "no type": lambda config: config.pop("dtype"),
    "another width": lambda config: config.update(hidden_size=64),
    "another vocabulary": lambda config: config.update(vocab_size=64),
    "another architecture": lambda config: config.update(model_type="gpt2"),
    "fewer blocks": lambda config: config.update(num_hidden_layers=1),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_configuration_that_does_not_fit_is_one_paragraph(tmp_path: Path, kind: str) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "rtn", "group_size": 16}])
    _edit(folder, "config.json", MISFITS[kind])
    with pytest.raises(RecordError, match="Compress the model again"):
        Checkpoint.open(folder).load_model()
