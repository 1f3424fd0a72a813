import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness import families
from tests.oracles import gptq_format
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.checkpoints.exporting import export
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models.caching import Caching
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.runs import requests
from trinity.harness.runs.outputs import compress_to, export_to
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, UnsupportedError

IDS = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(1))
GPTQ: dict[str, Any] = {"method": "gptq", "group_size": 16, "symmetric": True}
RTN: dict[str, Any] = {"method": "rtn", "group_size": 32, "scale_dtype": "float16"}
CHANNEL: dict[str, Any] = {**RTN, "group_size": "channel"}
WIDE = {"intermediate_size": 64}  # groups of 32: two of them in down_proj, one elsewhere


def _compressed(
    tmp_path: Path,
    steps: list[dict[str, Any]],
    sizes: dict[str, int] | None = None,
    **spec: Any,
) -> Path:
    """sizes: of the model, which is made if it is not there, where they are not the family's"""
    if not (tmp_path / "model").exists():
        families.save("llama", tmp_path / "model", **(sizes or {}))
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    given = CompressSpec.model_validate({"steps": steps, **spec})
    made = plan.make(given, decoder.layer_shapes())
    blocks = Walk(decoder, made, IDS, StageStore(tmp_path / "store"), {}).run(lambda d, o: None)
    folder = tmp_path / "compressed"
    folder.mkdir()
    checkpoint.write(folder, decoder, blocks, {"recipe": {}}, made.inputs)
    return folder


def test_a_cache_is_no_part_of_an_exported_layout(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [{"method": "rtn", "group_size": 16}])
    path = folder / "config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["quantization_config"]["cache"] = Caching.of("rtn-cache", {}).to_json()
    path.write_text(json.dumps(data), encoding="utf-8")
    found = checkpoint.Checkpoint.open(folder)
    with pytest.raises(UnsupportedError, match="keeps keys and values as rtn-cache: int4"):
        export(found, "gptq", tmp_path / "exported")


def _settings(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "exported" / "quantize_config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _imported(tmp_path: Path) -> Path:
    out = tmp_path / "imported"
    store, reporter = StageStore(tmp_path / "store"), Reporter(quiet=True)
    source = str(tmp_path / "exported")
    asked = requests.compression(source, "gptq-checkpoint", [], "float32", out)
    compress_to(asked, out, store, reporter)
    return out


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_an_exported_checkpoint_imports_to_the_same_weights(
    tmp_path: Path, layout: str, act_order: bool
) -> None:
    folder = _compressed(tmp_path, [{**GPTQ, "act_order": act_order}])
    export_to(folder, layout, tmp_path / "exported")
    imported = _imported(tmp_path)
    before, after = Checkpoint.open(folder), Checkpoint.open(imported)
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
    settings = _settings(tmp_path)
    assert settings.pop("meta")["quantizer"][0].startswith("trinity:")
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
    assert config["quantization_config"] == _settings(tmp_path)
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
    found = Checkpoint.open(folder).weight(name).dequantize().double().numpy()
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
        assert torch.equal(plain(IDS).logits, Checkpoint.open(folder).load_model()(IDS).logits)


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [GPTQ])
    with pytest.raises(ConfigError, match=r"--format gtpq.*Did you mean gptq.*huggingface"):
        export_to(folder, "gtpq", tmp_path / "exported")


def test_one_group_size_describes_layers_that_have_one_group_and_layers_that_have_several(
    tmp_path: Path,
) -> None:
    folder = _compressed(tmp_path, [RTN], sizes=WIDE)
    export_to(folder, "gptq", tmp_path / "exported")
    assert _settings(tmp_path)["group_size"] == 32
    after = Checkpoint.open(_imported(tmp_path))
    for name, weight in Checkpoint.open(folder).weights():
        assert torch.equal(after.weight(name).dequantize(), weight.dequantize()), name


def test_one_scale_an_output_is_group_size_minus_one_whatever_the_inputs(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [CHANNEL])
    export_to(folder, "gptq", tmp_path / "exported")
    assert _settings(tmp_path)["group_size"] == -1


def test_a_layer_with_one_group_of_more_inputs_than_the_others_is_refused(tmp_path: Path) -> None:
    folder = _compressed(
        tmp_path, [{**RTN, "group_size": 16}], layers={"*.1.mlp.down_proj": [CHANNEL]}, sizes=WIDE
    )
    with pytest.raises(UnsupportedError, match=r"int4 group 16.*1\.mlp\.down_proj is int4 channel"):
        export_to(folder, "gptq", tmp_path / "exported")


def test_zero_points_of_one_layer_speak_for_all(tmp_path: Path) -> None:
    unsigned = [{**RTN, "symmetric": False}]
    folder = _compressed(tmp_path, [RTN], layers={"*.up_proj": unsigned}, sizes=WIDE)
    export_to(folder, "gptq_v2", tmp_path / "exported")
    assert _settings(tmp_path)["sym"] is False


def test_inputs_that_are_rounded_when_the_model_runs_are_not_forgotten(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [GPTQ], inputs={"kind": "int8"})
    for layout in ("gptq", "huggingface"):
        with pytest.raises(UnsupportedError, match=r"inputs of .* are int8 token when it runs"):
            export_to(folder, layout, tmp_path / "exported")


@pytest.mark.parametrize("layout", ["gptq", "huggingface"])
def test_infinity_is_never_exported(tmp_path: Path, layout: str) -> None:
    folder = _compressed(tmp_path, [GPTQ])
    rest = load_file(folder / "model-rest.safetensors")
    rest["model.norm.weight"][0] = torch.inf
    save_file(rest, folder / "model-rest.safetensors")
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' holds NaN or infinity"):
        export_to(folder, layout, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("layout", ["gptq", "huggingface"])
def test_what_goes_with_a_model_goes_with_its_export(tmp_path: Path, layout: str) -> None:
    beside = {
        "tokenizer.json": "{}",
        "generation_config.json": '{"eos_token_id": 2}',
        "chat_template.jinja": "{{ messages }}",
        "merges.txt": "a b",
    }
    families.save("llama", tmp_path / "model")
    for name, text in beside.items():
        (tmp_path / "model" / name).write_text(text, encoding="utf-8")
    templates = tmp_path / "model" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("{{ tools }}", encoding="utf-8")
    # Left from an older save: they speak of weights that these are not.
    (tmp_path / "model" / "quant_config.json").write_text('{"bits": 8}', encoding="utf-8")
    folder = _compressed(tmp_path, [GPTQ])
    export_to(folder, layout, tmp_path / "exported")
    for name, text in beside.items():
        assert (tmp_path / "exported" / name).read_text(encoding="utf-8") == text
    found = tmp_path / "exported" / "additional_chat_templates" / "tools.jinja"
    assert found.read_text(encoding="utf-8") == "{{ tools }}"
    for gone in ("quant_config.json", "trinity.json", "stage.json", "timing.json"):
        assert not (tmp_path / "exported" / gone).exists()
