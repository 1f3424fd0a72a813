import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.harness import families
from tests.oracles import gptq_format
from trinity.harness import checkpoint, plan
from trinity.harness.checkpoint import Checkpoint
from trinity.harness.commands import compress_to, export_to
from trinity.harness.models import Decoder
from trinity.harness.progress import Reporter
from trinity.harness.recipe import CompressSpec
from trinity.harness.store import StageStore
from trinity.harness.walk import Walk
from trinity.methods.errors import ConfigError, UnsupportedError

IDS = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(1))
GPTQ: dict[str, Any] = {"method": "gptq", "group_size": 16, "symmetric": True}


def _compressed(tmp_path: Path, steps: list[dict[str, Any]], **spec: Any) -> Path:
    families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    given = CompressSpec.model_validate({"steps": steps, **spec})
    made = plan.make(given, decoder.layer_shapes())
    blocks = Walk(decoder, made, IDS, StageStore(tmp_path / "store"), {}).run(lambda d, o: None)
    folder = tmp_path / "compressed"
    folder.mkdir()
    checkpoint.write(folder, decoder, blocks, {"recipe": {}})
    return folder


def _imported(tmp_path: Path, settings: list[str]) -> Path:
    out = tmp_path / "imported"
    store, reporter = StageStore(tmp_path / "store"), Reporter(quiet=True)
    source = str(tmp_path / "exported")
    compress_to(source, "gptq-checkpoint", settings, "float32", out, store, reporter)
    return out


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_an_exported_checkpoint_imports_to_the_same_weights(
    tmp_path: Path, layout: str, act_order: bool
) -> None:
    folder = _compressed(tmp_path, [{**GPTQ, "act_order": act_order}])
    export_to(folder, layout, tmp_path / "exported")
    imported = _imported(tmp_path, [f"checkpoint_format={layout}"])
    before, after = Checkpoint(folder), Checkpoint(imported)
    assert before.formats == after.formats
    for name, weight in before.weights():
        assert torch.equal(after.weight(name).dequantize(), weight.dequantize()), name
    with torch.no_grad():
        logits = [found.load_model()(IDS).logits for found in (before, after)]
    assert torch.equal(*logits)
    report = json.loads((imported / "trinity.json").read_text())["layers"]
    assert all(layer["relative_error"] is None for layer in report.values())


def test_the_files_are_what_the_format_says(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [GPTQ])
    export_to(folder, "gptq", tmp_path / "exported")
    settings = json.loads((tmp_path / "exported" / "quantize_config.json").read_text())
    assert settings == {
        "bits": 4,
        "group_size": 16,
        "sym": True,
        "desc_act": False,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
    }
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["quantization_config"] == settings
    index = json.loads((tmp_path / "exported" / "model.safetensors.index.json").read_text())
    name = "model.layers.1.mlp.down_proj"
    tensors = load_file(tmp_path / "exported" / index["weight_map"][f"{name}.qweight"])
    parts = {part: tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
    expected = gptq_format.decode(
        parts["qweight"].numpy(),
        parts["qzeros"].numpy(),
        parts["scales"].double().numpy(),
        parts["g_idx"].tolist(),
        4,
        1,
    )
    found = Checkpoint(folder).weight(name).dequantize().double().numpy()
    assert found == pytest.approx(expected)
    assert not any(key.endswith("proj.weight") for key in index["weight_map"])


def test_layers_of_several_kinds_are_refused_naming_two(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [GPTQ], layers={"*.down_proj": [{**GPTQ, "bits": 8}]})
    with pytest.raises(
        UnsupportedError, match=r"one set of options.*down_proj is int8.*gate_proj is int4"
    ):
        export_to(folder, "gptq", tmp_path / "exported")


def test_a_dense_layer_is_refused_by_name_and_nothing_is_left(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [GPTQ], skip=["*.0.mlp.up_proj"])
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mlp\.up_proj: is float32"):
        export_to(folder, "gptq", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_plain_floats_give_the_same_logits_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = _compressed(tmp_path, [GPTQ])
    export_to(folder, "huggingface", tmp_path / "exported")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, Checkpoint(folder).load_model()(IDS).logits)


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [GPTQ])
    with pytest.raises(ConfigError, match=r"--format gtpq.*Did you mean gptq.*huggingface"):
        export_to(folder, "gtpq", tmp_path / "exported")
