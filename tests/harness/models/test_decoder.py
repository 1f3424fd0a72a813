from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.harness import families, quirks
from trinity.harness.models.decoder import Decoder, wider
from trinity.harness.models.model_config import read_config, unusable
from trinity.harness.models.model_files import WeightReader, damaged
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
        if name.startswith(path) and isinstance(module, nn.Linear | Conv1D)
    }
    assert set(decoder.layer_names(0)) == linears


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected model.safetensors or .*, found none"):
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


def _store(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a folder's file."""
    tensors = quirks.tensors(folder)
    change(tensors)
    quirks.write(folder, tensors)


def test_a_number_too_large_for_the_runs_type_is_named_with_the_type(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    _store(tmp_path, lambda found: found["model.norm.weight"].fill_(1e5))
    Decoder(tmp_path, torch.bfloat16, CPU).load_outside_blocks()
    with pytest.raises(ConfigError, match=r"model\.norm\.weight' reaches 1e\+05.*float16 cannot"):
        Decoder(tmp_path, torch.float16, CPU).load_outside_blocks()


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("gptq", "--method gptq-checkpoint --out DIR` reads it"),
        ("compressed-tensors", "before it was quantized"),
        ("bitsandbytes", "before it was quantized"),
        ("awq", "before it was quantized"),
        ("fp8", "before it was quantized"),
        ("trinity", "compress the model it was made from"),
    ],
)
def test_a_model_quantized_by_others_is_refused_with_what_reads_it(
    tmp_path: Path, method: str, remedy: str
) -> None:
    families.save("llama", tmp_path)
    quirks.edit_config(tmp_path, quantization_config={"quant_method": method})
    decoder = Decoder(tmp_path, torch.float32, CPU)
    with pytest.raises(UnsupportedError, match=f"{method}.*{remedy}"):
        decoder.check_weights()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_in_the_place_of_a_weight_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    families.save("llama", tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    _store(tmp_path, lambda found: found.update({name: found[name].to(dtype)}))
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.up_proj\.weight.*codes"):
        Decoder(tmp_path, torch.float32, CPU).check_weights()


def test_a_weight_of_another_shape_is_refused_before_it_is_read(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    quirks.edit_config(tmp_path, vocab_size=64)
    with pytest.raises(ConfigError, match=r"is \[96, 32\].*\[64, 32\].*vocab_size to 96"):
        Decoder(tmp_path, torch.float32, CPU).check_weights()


def test_a_file_of_another_user_is_no_damage(tmp_path: Path) -> None:
    error = PermissionError(13, "Permission denied")
    assert "may not be read by this user" in damaged(tmp_path / "model.safetensors", error)


def test_tensors_called_otherwise_are_shown(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    quirks.renamed(lambda name: f"module.{name}")(tmp_path)
    with pytest.raises(ConfigError, match=r"called like 'module\."):
        Decoder(tmp_path, torch.float32, CPU).check_weights()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("adapter_config.json", "an adapter of peft"), ("m.gguf", "other programs read")],
)
def test_a_folder_of_another_kind_is_named(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        WeightReader(tmp_path)


def test_buffers_of_older_files_are_not_called_unused(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "ema": torch.ones(1)}
    _store(tmp_path, lambda found: found.update(extra))
    assert Decoder(tmp_path, torch.float32, CPU).unused() == ["ema"]


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    quirks.save("shards beside an older save", tmp_path)
    (tmp_path / "model-b.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"1 of the 2 files.*model-b\.safetensors"):
        WeightReader(tmp_path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _point(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("../blobs/gone")


DAMAGE = {
    "truncated": (_cut, "damaged or cut short"),
    "git-lfs pointer": (_point, "git lfs pull"),
    "dangling link": (_dangle, "is a link to ../blobs/gone"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or cut short"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_weight_file_is_one_paragraph(tmp_path: Path, kind: str) -> None:
    families.save("llama", tmp_path)
    damage, sentence = DAMAGE[kind]
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=sentence):
        Decoder(tmp_path, torch.float32, CPU).check_weights()


def test_a_damaged_file_of_the_hubs_cache_is_named_with_its_blob(tmp_path: Path) -> None:
    snapshot, blob = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs/f00"
    families.save("llama", snapshot)
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00")
    _cut(blob)
    with pytest.raises(ConfigError, match=rf"Delete .*model\.safetensors and {blob}"):
        Decoder(snapshot, torch.float32, CPU).check_weights()


BAD_CONFIGS = {
    "truncated": ('{"model_type": "lla', "damaged or cut short"),
    "byte order mark": ("\ufeff{}", "byte order mark. Save it as UTF-8"),
    "a list": ("[]", "holds list"),
    "no model_type": ('{"hidden_size": 8}', "no `model_type`"),
    "unknown": ('{"model_type": "deepseek_v9"}', "'deepseek_v9' is not supported"),
    "custom code": ('{"model_type": "mine", "auto_map": {"AutoConfig": "c.C"}}', "never run here"),
    "experts": ('{"model_type": "mixtral", "num_local_experts": 8}', "mixture of experts \\(8"),
    "positions null": (
        '{"model_type": "llama", "max_position_embeddings": null}',
        "cannot make a model.*max_position_embeddings",
    ),
    "no window": ('{"model_type": "mistral", "sliding_window": 0}', "`null` means none"),
    "a window in words": ('{"model_type": "llama", "sliding_window": "4"}', "sliding_window '4'"),
    "weights by number": (
        '{"model_type": "llama", "transformers_weights": 5}',
        "transformers_weights 5, expected the name",
    ),
    "no blocks": ('{"model_type": "llama", "num_hidden_layers": 0}', "no blocks"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_configuration_is_one_paragraph(tmp_path: Path, kind: str) -> None:
    text, sentence = BAD_CONFIGS[kind]
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "nope"}, {"pad_token_id": 500}, {"rope_scaling": {"type": "x", "factor": 2.0}}],
)
def test_values_that_transformers_does_not_take_are_one_paragraph(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    families.save("llama", tmp_path)
    quirks.edit_config(tmp_path, rope_parameters=..., **changes)
    with pytest.raises(ConfigError, match="transformers cannot make a model"):
        Decoder(tmp_path, torch.float32, CPU)


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


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_of_peft_is_not_left_out_without_a_word(tmp_path: Path, whole: bool) -> None:
    if whole:
        families.save("llama", tmp_path)
    text = '{"base_model_name_or_path": "a/base", "peft_type": "LORA"}'
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"adapter of a/base .*Merge it with peft"):
        Decoder(tmp_path, torch.float32, CPU).check_weights()


@pytest.mark.parametrize(
    "content", ['{"a": ["x"]}', '{"a": "x", "b": 3}', '{"a": ".."}', '{"a": "../x"}', '{"a": ""}']
)
def test_an_index_that_names_no_file_beside_it_is_one_paragraph(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(f'{{"weight_map": {content}}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="none beside it"):
        WeightReader(tmp_path)


def test_codes_in_the_place_of_a_tied_pair_are_refused(tmp_path: Path) -> None:
    families.save("llama", tmp_path)
    quirks.edit_config(tmp_path, tie_word_embeddings=True)
    table = quirks.tensors(tmp_path)[quirks.EMBEDDING].clone()
    table[0, 0] = float("nan")
    codes = table.to(torch.float8_e4m3fn)
    pair = {quirks.EMBEDDING: codes, quirks.HEAD: codes.clone()}
    _store(tmp_path, lambda found: found.update(pair))
    with pytest.raises(UnsupportedError, match="codes of numbers"):
        Decoder(tmp_path, torch.float32, CPU).check_weights()


def test_only_a_bare_key_is_said_to_be_absent(tmp_path: Path) -> None:
    assert "(there is no 'rope_type')" in unusable(tmp_path, KeyError("rope_type"))
    assert "(no function nope here)" in unusable(tmp_path, KeyError("no function nope here"))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.float16, "--dtype bfloat16` or `--dtype float32`"),
        (torch.bfloat16, "--dtype float32`"),
        (torch.float32, "no wider one"),
    ],
)
def test_a_wider_type_is_advised_where_there_is_one(dtype: torch.dtype, words: str) -> None:
    assert words in wider(dtype, "no wider one")
