"""What an export as compressed-tensors holds, as the audit and the package itself read it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness import families
from tests.harness.checkpoints.test_exporting import IDS, _compressed
from trinity.harness.audit.audit import audit, layout_of
from trinity.harness.checkpoints import compressed_tensors
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.runs.outputs import export_to
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import Quantized

RTN: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 16}
EIGHT: dict[str, Any] = {**RTN, "bits": 8, "group_size": "channel"}
INDEXED = {"method": "gptq", "group_size": 16, "symmetric": True, "act_order": True}
ASKED: dict[str, dict[str, Any]] = {
    "group": {"steps": [RTN]},
    "channel": {"steps": [EIGHT]},
    "2:4": {"steps": [RTN, {"method": "wanda", "pattern": "2:4"}]},
    "two widths and dense layers": {
        "steps": [RTN],
        "layers": {"*mlp*": [EIGHT]},
        "skip": ["lm_head", "*o_proj"],
    },
}


@pytest.mark.parametrize("name", ASKED)
def test_an_export_holds_the_weights_and_the_audit_finds_no_fault(
    name: str, tmp_path: Path
) -> None:
    folder = _compressed(tmp_path, **ASKED[name])
    out = tmp_path / "exported"
    export_to(folder, "compressed-tensors", out)
    layout = layout_of(out)
    matrices = {matrix.name: matrix for matrix in layout.matrices()}
    assert matrices["model.layers.0.mlp.up_proj"].quantized
    for layer, weight in Checkpoint.open(folder).weights():
        read = layout.decode(matrices[layer]).values
        assert read is not None
        assert torch.equal(read, weight.dequantize()), layer
    assert audit(out).faults == []


def test_the_configuration_leaves_the_head_dense(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [RTN])
    export_to(folder, "compressed-tensors", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text(encoding="utf-8"))
    section = config["quantization_config"]
    assert section["ignore"] == ["lm_head"]
    assert section["config_groups"]["group_0"]["targets"] == ["Linear"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"method": "magnitude", "pattern": "2:4"}], "not pruned floats"),
        ([{"method": "nvfp4"}], "not coded"),
        ([{"method": "magnitude", "pattern": "2:4"}, {"method": "nvfp4"}], "not coded"),
        ([{**RTN, "symmetric": False}], "zero points cannot be loaded"),
        ([{**RTN, "bits": 3}], "4 or 8 bits, not 3"),
        ([RTN, {"method": "slim-lora", "rank": 0.1}], "not adapted"),
        ([INDEXED], "no consecutive inputs"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_layer(
    steps: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    folder = _compressed(tmp_path, steps)
    with pytest.raises(UnsupportedError, match=said) as error:
        export_to(folder, "compressed-tensors", tmp_path / "exported")
    assert "model.layers.0." in str(error.value)
    assert not (tmp_path / "exported").exists()


def test_layers_that_are_no_linear_are_refused(tmp_path: Path) -> None:
    families.save("gpt2", tmp_path / "model")
    folder = _compressed(tmp_path, [RTN])
    with pytest.raises(UnsupportedError, match="is a Conv1D"):
        export_to(folder, "compressed-tensors", tmp_path / "exported")


def test_a_model_with_nothing_quantized_is_refused(tmp_path: Path) -> None:
    folder = _compressed(tmp_path, [{"method": "dense"}])
    with pytest.raises(UnsupportedError, match="no layer is quantized"):
        export_to(folder, "compressed-tensors", tmp_path / "exported")


def test_scales_that_the_models_type_does_not_hold_are_refused() -> None:
    scale = torch.full((2, 1), 1 / 3)
    weight = Quantized(torch.zeros(2, 8, dtype=torch.int8), scale, None, 4)
    with pytest.raises(UnsupportedError, match="scale_dtype: float16"):
        compressed_tensors.write_layer(weight, torch.float16)


@pytest.mark.parametrize("name", ASKED)
def test_transformers_reads_an_export_as_the_same_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: `tox -e formats`")
    from transformers import AutoModelForCausalLM

    folder = _compressed(tmp_path, **ASKED[name])
    export_to(folder, "compressed-tensors", tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        ours = Checkpoint.open(folder).load_model()(IDS).logits
        theirs = model(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
