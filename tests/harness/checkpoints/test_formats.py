"""Exports as the packages of other programs load them: packed, and with the perplexity of ours.

Needs those packages: `tox -e formats`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.harness.audit import llamas
from tests.harness.checkpoints.test_exporting import _compressed
from trinity.harness.accuracy import perplexity
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.records.measurement import Measurement
from trinity.harness.runs.outputs import export_to
from trinity.harness.texts import corpora

# These packages warn of kernels that a processor does not have, each in a way of its own.
pytestmark = pytest.mark.filterwarnings("ignore")

RTN: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 32, "scale_dtype": "float16"}
EIGHT: dict[str, Any] = {**RTN, "bits": 8}
CHANNEL: dict[str, Any] = {**RTN, "bits": 8, "group_size": "channel"}
ORDERED: dict[str, Any] = {
    "method": "gptq", "group_size": 32, "symmetric": True, "act_order": True,
}  # fmt: skip
WANDA: dict[str, Any] = {"method": "wanda", "pattern": "2:4"}
COMPRESSED_TENSORS: dict[str, dict[str, Any]] = {
    "group": {"steps": [RTN]},
    "channel": {"steps": [CHANNEL]},
    "2:4": {"steps": [RTN, WANDA]},
    "two widths and dense layers": {
        "steps": [RTN],
        "layers": {"*mlp*": [CHANNEL]},
        "skip": ["lm_head", "*o_proj"],
    },
}
GPTQ: dict[str, dict[str, Any]] = {
    "group": {"steps": [RTN]},
    "zero points": {"steps": [{**RTN, "symmetric": False}]},
    "eight bits": {"steps": [EIGHT]},
    "order of the inputs": {"steps": [ORDERED]},
    "2:4": {"steps": [RTN, WANDA]},
}


def _exported(tmp_path: Path, layout: str, spec: dict[str, Any]) -> tuple[Path, Path]:
    """A checkpoint of the tiny Llama, and its export."""
    llamas.save_dense(tmp_path / "model")
    folder = _compressed(tmp_path, **spec)
    export_to(folder, layout, tmp_path / "exported")
    return folder, tmp_path / "exported"


def _measured(model: Any, folder: Path) -> Measurement:
    """folder: that has the tokenizer"""
    engine = TorchEngine(model, 128, "simulated")
    text = corpora.load("pydoc", "test")
    return perplexity.evaluate(engine, tokenizer_of(folder), text, 128, 32)


def _same(folder: Path, theirs: Any) -> None:
    """Perplexity to 1e-3, where compression has moved it by more than five times that."""
    ours = _measured(Checkpoint.open(folder).load_model(), folder)
    found = _measured(theirs, folder)
    assert ours.value is not None
    assert found.value == pytest.approx(ours.value, rel=1e-3)
    assert found.samples == pytest.approx(ours.samples, abs=2e-2)  # nats, of each window
    grids = [weight.grid for weight in Checkpoint.open(folder).formats.values()]
    if any(grid and grid.bits == 4 for grid in grids):  # eight bits move too little
        dense = AutoModelForCausalLM.from_pretrained(folder.parent / "model")
        before = _measured(dense, folder).value
        assert before is not None
        assert abs(ours.value / before - 1) > 5e-3


@pytest.mark.parametrize("name", COMPRESSED_TENSORS)
def test_compressed_tensors_gives_the_same_perplexity(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: `tox -e formats`")
    folder, out = _exported(tmp_path, "compressed-tensors", COMPRESSED_TENSORS[name])
    model = AutoModelForCausalLM.from_pretrained(out)
    stored = model.get_submodule("model.layers.0.self_attn.q_proj").state_dict()
    assert stored["weight_packed"].dtype == torch.int32
    _same(folder, model)


@pytest.mark.parametrize("name", GPTQ)
def test_gptqmodel_gives_the_same_perplexity_from_packed_weights(name: str, tmp_path: Path) -> None:
    layout = "gptq_v2" if name == "zero points" else "gptq"
    pytest.importorskip("gptqmodel", reason="needs gptqmodel and optimum: `tox -e formats`")
    folder, out = _exported(tmp_path, layout, GPTQ[name])
    # Its kernels for processors compute in half precision.
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float16)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert type(layer).__module__.startswith("gptqmodel.")
    assert layer.qweight.dtype == torch.int32
    _same(folder, model)


def test_plain_floats_give_the_same_perplexity(tmp_path: Path) -> None:
    folder, out = _exported(tmp_path, "huggingface", {"steps": [RTN, WANDA]})
    _same(folder, AutoModelForCausalLM.from_pretrained(out))
