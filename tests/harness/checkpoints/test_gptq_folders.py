"""Whole folders in the GPTQ layout, as other programs write and read them: nothing gets lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.harness import families
from tests.oracles import gptq_format
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.checkpoints.exporting import export
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.runs import requests
from trinity.harness.runs.outputs import compress_to
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError

IDS = torch.randint(0, 96, (1, 12), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")
# One family of each way to lay out a block: names, fused products, transposed linears, ties.
KINDS = ("llama", "gemma2", "opt", "gpt2", "gpt_neox", "gptj", "phi3", "falcon", "bloom", "mpt")
LLAMA_LAYER = "model.layers.1.mlp.down_proj"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS, use_cache=False).logits
    return found


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def plain(tensors: dict[str, Tensor], turned: bool) -> dict[str, Tensor]:
    """The same with every packed layer decoded by the oracle.  turned: GPT-2 keeps [in, out]"""
    found = dict(tensors)
    for key in tensors:
        if not key.endswith(".qweight"):
            continue
        name = key.removesuffix(".qweight")
        parts = [found.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")]
        qweight, qzeros, scales, index = parts
        W = gptq_format.decode(
            qweight.numpy(), qzeros.numpy(), scales.double().numpy(), index.tolist(), 4, added=1
        )
        weight = torch.from_numpy(W.T if turned else W)
        found[f"{name}.weight"] = weight.float().contiguous()
    return found


def imported(folder: Path, place: Path) -> Path:
    store, reporter = StageStore(place / "store"), Reporter(quiet=True)
    asked = requests.compression(str(folder), "gptq-checkpoint", [], "float32", place / "in")
    compress_to(asked, place / "in", store, reporter)
    return place / "in"


def exported(family: str, place: Path, **changes: Any) -> Path:
    """A random model, rounded to 4 bits with one scale an output, in the GPTQ layout."""
    families.save(family, place / "model", **changes)
    decoder = Decoder(place / "model", torch.float32, CPU)
    step = {"method": "rtn", "group_size": "channel", "scale_dtype": "float16"}
    made = plan.make(CompressSpec.model_validate({"steps": [step]}), decoder.layer_shapes())
    blocks = Walk(decoder, made, None, StageStore(place / "store"), {}).run(lambda d, o: None)
    (place / "ours").mkdir()
    checkpoint.write(place / "ours", decoder, blocks, {"recipe": {}})
    export(Checkpoint.open(place / "ours"), "gptq", place / "theirs")
    return place / "theirs"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("llama", tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


def changed(llama: Path, place: Path, tensors: dict[str, Tensor], **said: Any) -> Path:
    """The folder in one file with other tensors; said: keys of the settings, None leaves one out"""
    place.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, place / "model.safetensors")
    settings = json.loads((llama / "quantize_config.json").read_text(encoding="utf-8")) | said
    config = json.loads((llama / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {k: v for k, v in settings.items() if v is not None}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


@pytest.mark.parametrize("family", KINDS)
def test_an_export_is_the_model_to_whoever_decodes_it_and_comes_back(
    family: str, tmp_path: Path
) -> None:
    theirs = exported(family, tmp_path)
    wanted = logits(Checkpoint.open(tmp_path / "ours").load_model())
    decoded = tmp_path / "decoded"
    changed(theirs, decoded, plain(tensors_of(theirs), turned=family == "gpt2"))
    config = json.loads((decoded / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (decoded / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(decoded)), wanted)
    assert torch.equal(logits(Checkpoint.open(imported(theirs, tmp_path)).load_model()), wanted)


def test_a_short_last_group_comes_back_through_both_directions(llama: Path, tmp_path: Path) -> None:
    """Groups of 32 where in = 48: two, of 32 and 16 inputs; and one where in = 32."""
    tensors = tensors_of(llama)
    for key in [key for key in tensors if key.endswith("down_proj.scales")]:
        name = key.removesuffix(".scales")
        scales = tensors[key]
        tensors[key] = torch.cat([scales, 2 * scales])
        tensors[f"{name}.qzeros"] = tensors[f"{name}.qzeros"].repeat(2, 1)
        tensors[f"{name}.g_idx"] = torch.zeros(48, dtype=torch.int32)
    first = imported(changed(llama, tmp_path / "ragged", tensors, group_size=32), tmp_path)
    weight = Checkpoint.open(first).weight(LLAMA_LAYER).dequantize()
    uniform = Checkpoint.open(llama.parent / "ours").weight(LLAMA_LAYER).dequantize()
    assert torch.equal(weight[:, :32], uniform[:, :32])
    assert torch.equal(weight[:, 32:], 2 * uniform[:, 32:])
    export(Checkpoint.open(first), "gptq", tmp_path / "again")
    said = json.loads((tmp_path / "again" / "quantize_config.json").read_text(encoding="utf-8"))
    assert (said["group_size"], said["desc_act"]) == (32, False)
    (tmp_path / "second").mkdir()
    second = imported(tmp_path / "again", tmp_path / "second")
    assert torch.equal(Checkpoint.open(second).weight(LLAMA_LAYER).dequantize(), weight)


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_head_is_kept_as_plain_floats_and_said(
    llama: Path, tmp_path: Path, tied: bool
) -> None:
    tensors = tensors_of(llama)
    head = tensors.pop("lm_head.weight")
    layer = {part: tensors[f"{LLAMA_LAYER}.{part}"] for part in ("qweight", "qzeros", "scales")}
    # The layer [32, 48] packed again for a head [96, 32], of other numbers.
    qweight = layer["qweight"][:4].repeat(1, 3)
    packed = {"qweight": qweight, "qzeros": layer["qzeros"].repeat(1, 3)}
    packed |= {"scales": layer["scales"].repeat(1, 3), "g_idx": torch.zeros(32, dtype=torch.int32)}
    tensors |= {f"lm_head.{part}": tensor for part, tensor in packed.items()}
    folder = changed(llama, tmp_path / "head", tensors, lm_head=True)
    if tied:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = Checkpoint.open(imported(folder, tmp_path))
    assert found.summary["imported"]["decoded"] == ["lm_head"]
    assert found.summary["imported"]["unmapped"] == []
    W = plain({f"lm_head.{part}": tensor for part, tensor in packed.items()}, turned=False)
    assert torch.equal(found.load_model().lm_head.weight, W["lm_head.weight"])
    assert not torch.equal(W["lm_head.weight"], head)


def test_biases_of_zeros_say_nothing_and_others_are_not_dropped(
    llama: Path, tmp_path: Path
) -> None:
    zeros = {f"{LLAMA_LAYER}.bias": torch.zeros(32)}
    folder = changed(llama, tmp_path / "zeros", {**tensors_of(llama), **zeros})
    assert Checkpoint.open(imported(folder, tmp_path)).summary["imported"]["unmapped"] == []
    ones = {f"{LLAMA_LAYER}.bias": torch.ones(32)}
    folder = changed(llama, tmp_path / "ones", {**tensors_of(llama), **ones})
    with pytest.raises(ConfigError, match=r"down_proj\.bias holds numbers, and .* no bias"):
        imported(folder, tmp_path / "other")


def test_names_without_the_base_models_prefix_are_found(llama: Path, tmp_path: Path) -> None:
    tensors = {key.removeprefix("model."): value for key, value in tensors_of(llama).items()}
    found = Checkpoint.open(imported(changed(llama, tmp_path / "bare", tensors), tmp_path))
    assert found.summary["imported"]["dense"] == []
    assert found.summary["imported"]["unmapped"] == []
    wanted = Checkpoint.open(llama.parent / "ours").load_model()
    assert torch.equal(logits(found.load_model()), logits(wanted))


def test_a_padded_layer_is_refused_before_anything_is_written(llama: Path, tmp_path: Path) -> None:
    tensors = tensors_of(llama)
    for part in ("qweight", "scales"):
        tensor = tensors[f"{LLAMA_LAYER}.{part}"]
        tensors[f"{LLAMA_LAYER}.{part}"] = torch.cat([tensor, tensor[:, :8]], dim=1)
    qzeros = tensors[f"{LLAMA_LAYER}.qzeros"]
    tensors[f"{LLAMA_LAYER}.qzeros"] = torch.cat([qzeros, qzeros[:, :1]], dim=1)
    with pytest.raises(ConfigError, match=r"down_proj: the imported weight is \[40, 48\]"):
        imported(changed(llama, tmp_path / "padded", tensors), tmp_path)


def test_a_layer_that_the_folder_leaves_dense_stays_dense_and_is_listed(
    llama: Path, tmp_path: Path
) -> None:
    dense = {f"{LLAMA_LAYER}.weight": torch.randn(32, 48)}
    packed = {k: v for k, v in tensors_of(llama).items() if not k.startswith(f"{LLAMA_LAYER}.")}
    rule = {rf"-:{LLAMA_LAYER}": {}}
    folder = changed(llama, tmp_path / "dynamic", {**packed, **dense}, dynamic=rule)
    found = Checkpoint.open(imported(folder, tmp_path))
    assert found.summary["imported"]["dense"] == [LLAMA_LAYER]
    assert torch.equal(found.weight(LLAMA_LAYER).dequantize(), dense[f"{LLAMA_LAYER}.weight"])


@pytest.mark.parametrize("sharded", [False, True])
def test_the_names_that_autogptq_gives_its_files_are_found(
    llama: Path, tmp_path: Path, sharded: bool
) -> None:
    folder = changed(llama, tmp_path / "named", tensors_of(llama))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit--1g.safetensors")
    if sharded:
        (folder / "gptq_model-4bit--1g.safetensors").unlink()
        index = json.loads((llama / "model.safetensors.index.json").read_text(encoding="utf-8"))
        for name in set(index["weight_map"].values()):
            shutil.copyfile(llama / name, folder / f"gptq_{name}")
        index["weight_map"] = {k: f"gptq_{v}" for k, v in index["weight_map"].items()}
        text = json.dumps(index)
        (folder / "gptq_model-4bit--1g.safetensors.index.json").write_text(text, encoding="utf-8")
    found = Checkpoint.open(imported(folder, tmp_path)).load_model()
    assert torch.equal(logits(found), logits(Checkpoint.open(llama.parent / "ours").load_model()))
