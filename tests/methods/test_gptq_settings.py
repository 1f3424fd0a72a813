"""methods/gptq_settings.py: what the folders of AutoGPTQ, GPTQModel and transformers say."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.samples import GridCase, assert_same_weight, random_quantized
from trinity.methods.conformance import check
from trinity.methods.contract import StoredTensors
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.formats import Quantized
from trinity.methods.gptq_checkpoint import (
    GPTQ_CHECKPOINT,
    GptqCheckpointConfig,
    load,
    write_layer,
)
from trinity.methods.gptq_settings import Version, read_settings

LAYER = "model.layers.0.up"
OUT, IN = 32, 96
SAID: dict[str, Any] = {"bits": 4, "group_size": 32, "sym": False, "desc_act": False}
AUTOGPTQ = {**SAID, "damp_percent": 0.01, "static_groups": False, "quant_method": "gptq"}
GPTQMODEL = {
    **SAID,
    "lm_head": False,
    "method": "gptq",
    "quant_method": "gptq",
    "format": "gptq",
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "meta": {"quantizer": ["gptqmodel:5.0.0"], "damp_percent": 0.05},
}
TRANSFORMERS = {
    **SAID,
    "quant_method": "gptq",
    "format": "gptq",
    "checkpoint_format": "gptq",
    "dataset": None,
    "modules_in_block_to_quantize": None,
    "meta": None,
}


def weight(symmetric: bool = False, groups: int = 3, index: Tensor | None = None) -> Quantized:
    found = random_quantized(OUT, IN, GridCase(4, symmetric, groups, torch.float16))
    zero = None if found.zero_point is None else found.zero_point.clamp(min=1)
    return Quantized(found.codes, found.scale, zero, 4, index)


def folder(
    stored: Quantized,
    version: Version = "gptq",
    said: dict[str, Any] | None = None,
    section: dict[str, Any] | None = None,
) -> StoredTensors:
    """One layer's tensors with quantize_config.json, and the section of config.json."""
    tensors = {f"{LAYER}.{part}": t for part, t in write_layer(stored, version).items()}
    settings: dict[str, dict[str, Any]] = {"config.json": {"model_type": "llama"}}
    if said is not None:
        settings["quantize_config.json"] = said
    if section is not None:
        settings["config.json"]["quantization_config"] = section
    return StoredTensors(tensors, settings)


def read(stored: StoredTensors, option: Version | None = None) -> Quantized:
    return load(stored, option)[LAYER]


@pytest.mark.parametrize("said", [AUTOGPTQ, GPTQMODEL, TRANSFORMERS], ids=["auto", "model", "hf"])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_the_version_is_what_the_folder_says_in_every_writers_words(
    said: dict[str, Any], version: Version
) -> None:
    keys = {"checkpoint_format": version, "format": version}
    # AutoGPTQ of old says nothing where it writes the first version.
    known = said if version == "gptq" else {**said, **keys}
    stored = weight()
    for given in (folder(stored, version, known), folder(stored, version, None, known)):
        assert_same_weight(read(given), stored)


def test_both_files_of_a_folder_may_say_it_if_they_agree() -> None:
    stored = weight()
    assert_same_weight(read(folder(stored, "gptq", AUTOGPTQ, TRANSFORMERS)), stored)
    other = {**TRANSFORMERS, "bits": 8}
    with pytest.raises(
        ConfigError, match=r"quantize_config\.json says `bits: 4` and config\.json `bits: 8`"
    ):
        read(folder(stored, "gptq", AUTOGPTQ, other))


def test_an_option_that_contradicts_the_folder_is_refused_with_both_values() -> None:
    with pytest.raises(ConfigError, match=r"is gptq_v2, but quantize_config\.json says gptq\."):
        read(folder(weight(), "gptq", GPTQMODEL), "gptq_v2")
    stored = weight()
    assert_same_weight(read(folder(stored, "gptq_v2", AUTOGPTQ), "gptq_v2"), stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, r"up: gptq-checkpoint: qweight \[12, 32\] holds 4 bits.*`bits: 8`"),
        ({"group_size": 128}, r"scales hold 3 groups of the 96 inputs.*`group_size: 128`"),
        ({"group_size": -1}, r"scales hold 3 groups.*`group_size: -1`"),
        ({"sym": True}, r"qzeros hold a zero point of \d+, not only 8.*`sym: true`"),
        ({"bits": "4"}, r"`bits: '4'`"),
        ({"group_size": 0}, r"`group_size: 0`; expected"),
        ({"w_bit": 3}, r"says `bits` twice, 4 and 3"),
        ({"format": "gptq_v2", "checkpoint_format": "gptq"}, r"says `checkpoint_format` twice"),
        ({"dynamic": {"(": {}}}, r"the rule '\(' of `dynamic` is no pattern"),
    ],
)
def test_what_the_tensors_contradict_is_refused_with_tensor_and_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(folder(weight(), "gptq", {**SAID, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_format": "marlin"},
        {"is_marlin_format": True},
        {"quant_method": "awq"},
        {"quant_method": "trinity"},
        {"rotation": "hadamard"},
        {"pack_dtype": "int16"},
        {"format": "gptq_p"},
    ],
    ids=str,
)
def test_another_layout_is_refused_by_the_key_that_names_it(changes: dict[str, Any]) -> None:
    ((key, value),) = changes.items()
    said = {"format": "checkpoint_format"}.get(key, key)
    with pytest.raises(UnsupportedError, match=rf"(?i){said}: {value}`"):
        read(folder(weight(), "gptq", {**SAID, **changes}))


def test_a_short_last_group_ends_where_the_folder_says_without_an_index() -> None:
    index = (torch.arange(IN) // 64).to(torch.int32)  # groups of 64 and 32, not two of 48
    stored = weight(groups=2, index=index)
    whole = folder(stored, "gptq", {**SAID, "group_size": 64})
    for absent in (False, True):
        tensors = dict(whole)
        if absent:
            del tensors[f"{LAYER}.g_idx"]
        else:
            tensors[f"{LAYER}.g_idx"] = torch.zeros(IN, dtype=torch.int32)
        assert_same_weight(read(StoredTensors(tensors, whole.settings)), stored)


def test_groups_that_do_not_divide_are_refused_where_nobody_says_where_they_end() -> None:
    whole, index = weight(groups=1), (torch.arange(IN) // 20).to(torch.int32)
    scale, zero = torch.rand(OUT, 5).half() + 0.1, torch.ones(OUT, 5, dtype=torch.uint8)
    stored = Quantized(whole.codes, scale, zero, 4, index)
    tensors = dict(folder(stored))
    del tensors[f"{LAYER}.g_idx"]
    with pytest.raises(ConfigError, match=r"5 groups, which do not divide the 96 inputs"):
        read(StoredTensors(tensors))


def test_an_order_that_is_lost_or_not_said_is_refused() -> None:
    index = torch.randperm(IN).to(torch.int32) // 32
    stored = weight(groups=3, index=index)
    ordered = folder(stored, "gptq", {**SAID, "desc_act": True})
    assert_same_weight(read(ordered), stored)
    with pytest.raises(ConfigError, match=r"g_idx puts inputs.*`desc_act: false`"):
        read(folder(stored, "gptq", SAID))
    tensors = {name: tensor for name, tensor in ordered.items() if not name.endswith("g_idx")}
    with pytest.raises(ConfigError, match=r"g_idx is missing or zero.*`desc_act: true`"):
        read(StoredTensors(tensors, ordered.settings))


def test_a_dynamic_rule_says_other_settings_for_its_layers_and_the_first_that_matches_counts() -> (
    None
):
    stored = weight()
    base = {**SAID, "bits": 8, "group_size": 128}
    rule = {"bits": 4, "group_size": 32}
    said = {**base, "dynamic": {r"+:.*\.0\.up$": rule, r".*up": {"bits": 2}}}
    assert_same_weight(read(folder(stored, "gptq", said)), stored)
    said = {**base, "dynamic": {r".*down": rule}}
    with pytest.raises(ConfigError, match="`bits: 8`"):
        read(folder(stored, "gptq", said))


@pytest.mark.parametrize(
    "changes",
    [
        {"dynamic": {r"-:.*\.0\..*": {}}},
        {"modules_in_block_to_quantize": [["down"], ["gate"]]},
        {"modules_in_block_to_quantize": ["down"]},
    ],
    ids=str,
)
def test_a_layer_that_is_said_to_be_dense_and_is_not_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"up\.qweight.*{next(iter(changes))}"):
        read(folder(weight(), "gptq", {**SAID, **changes}))


def test_a_layer_that_is_there_twice_is_refused() -> None:
    tensors = {**folder(weight()), f"{LAYER}.weight": torch.zeros(OUT, IN)}
    with pytest.raises(ConfigError, match=r"both .*up\.qweight and .*up\.weight"):
        read(StoredTensors(tensors))


def test_a_scale_that_is_no_step_is_named() -> None:
    whole = folder(weight())
    scales = whole[f"{LAYER}.scales"].clone()
    scales[0, 3] = torch.inf
    with pytest.raises(ConfigError, match=r"up: gptq-checkpoint: scales hold 1 .*such as inf"):
        read(StoredTensors({**whole, f"{LAYER}.scales": scales}))


def test_the_source_keeps_the_contract_on_a_folder_of_its_own() -> None:
    assert check(GPTQ_CHECKPOINT, tensors=folder(weight(), "gptq", GPTQMODEL)) == []


def test_a_folder_that_says_nothing_is_read_by_the_option_or_as_the_first_version() -> None:
    assert read_settings({"config.json": {"model_type": "llama"}}).version is None
    stored = weight()
    config = GptqCheckpointConfig(checkpoint_format="gptq_v2")
    assert_same_weight(GPTQ_CHECKPOINT.load(folder(stored, "gptq_v2"), config)[LAYER], stored)
    found = GPTQ_CHECKPOINT.load(folder(stored, "gptq"), GptqCheckpointConfig())
    assert_same_weight(found[LAYER], stored)


@pytest.mark.parametrize(
    "section",
    [
        "gptq",
        [],
        ["gptq"],
        5,
        {"dynamic": {".*nobody": {"bits": "x"}}},
        {"dynamic": {"+:(": {"bits": 4}}},
        {"dynamic": {"-:(": {}}},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_whichever_layers_there_are(section: Any) -> None:
    with pytest.raises(ConfigError, match=r"gptq-checkpoint: config\.json"):
        read_settings({"config.json": {"quantization_config": section}})


def test_a_writers_notes_may_hold_anything() -> None:
    assert not read_settings({"quantize_config.json": {"meta": {"quantizer": 5}}}).base.borrows
