import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.harness import families
from trinity.harness import checkpoint, plan
from trinity.harness.checkpoint import Checkpoint
from trinity.harness.models import Decoder
from trinity.harness.recipe import CompressSpec
from trinity.harness.store import StageStore
from trinity.harness.walk import Walk
from trinity.methods.errors import RecordError

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
    loaded = Checkpoint(_compressed(tmp_path, family, [])).load_model()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_compressed_checkpoint_loads_its_dequantized_weights(tmp_path: Path, family: str) -> None:
    model = families.save(family, tmp_path / "model")
    found = Checkpoint(_compressed(tmp_path, family, [{"method": "slim", "pattern": "2:4"}]))
    for name, weight in found.weights():
        linear = model.get_submodule(name)
        values = weight.dequantize()
        linear.weight.data = values.t().contiguous() if family == "gpt2" else values
    with torch.no_grad():
        assert torch.equal(found.load_model()(IDS).logits, model(IDS).logits)


def test_bits_per_weight_are_counted_from_the_files(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "slim", "pattern": "2:4", "rank": 4}])
    found = Checkpoint(folder)
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
    shapes = {layout.shape for layout in Checkpoint(folder).formats.values()}
    for path in folder.glob("model-block-*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  # not a dict
                tensor = stream.get_tensor(name)
                assert not (tensor.is_floating_point() and tuple(tensor.shape) in shapes), name


def test_it_says_what_it_is(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [{"method": "rtn", "group_size": 16}])
    assert checkpoint.is_compressed(folder)
    assert not checkpoint.is_compressed(tmp_path / "model")
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
        Checkpoint(folder)


def test_a_checkpoint_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    folder = _compressed(tmp_path, "llama", [])
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(RecordError, match="incomplete"):
        Checkpoint(folder)
