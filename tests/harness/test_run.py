import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trinity.harness import checkpoint, recipe
from trinity.harness.progress import Reporter
from trinity.harness.records import record
from trinity.harness.run import Run
from trinity.harness.store import StageStore
from trinity.methods.errors import ConfigError, MachineError, UnsupportedError
from trinity.methods.formats import InputFormat

PYDOC = {"dataset": "pydoc", "samples": 2, "seqlen": 64, "rule": "concatenated"}
SUITE = {"suite": "perplexity-pydoc", "seqlen": 64, "windows": 2}


def _recipe(**changes: Any) -> recipe.Recipe:
    data: dict[str, Any] = {
        "name": "test",
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": [{"method": "wanda", "pattern": "2:4"}]},
        "calibration": PYDOC,
        "evaluate": {"suites": [SUITE]},
    }
    return recipe.parse({**data, **changes}, "test")


def _run(store: StageStore, **changes: Any) -> Run:
    return Run(_recipe(**changes), store, Reporter(quiet=True))


def test_a_second_run_measures_nothing_and_ends_with_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "cache")
    first = record.write(_run(store).finish().record, tmp_path / "results")

    def forbidden(*_: object) -> None:
        raise AssertionError("a second run must not load a model")

    monkeypatch.setattr("trinity.harness.checkpoint.Checkpoint.load_model", forbidden)
    monkeypatch.setattr("trinity.harness.walk.Walk._embed", forbidden)
    second = record.write(_run(store).finish().record, tmp_path / "results")
    assert first == second
    assert len(list((tmp_path / "results").rglob("*.json"))) == 1


def test_a_record_carries_what_a_reader_needs(tmp_path: Path) -> None:
    found = _run(StageStore(tmp_path / "cache")).finish().record
    perplexity = found.find("perplexity-pydoc", "perplexity")
    assert perplexity is not None
    assert perplexity.path == "simulated"
    assert len(perplexity.samples) == 2
    assert found.calibration is not None
    assert found.calibration["rule"] == "concatenated"
    assert found.environment["packages"]["torch"]
    layer = found.checkpoint.layers["model.layers.0.mlp.down_proj"]
    assert layer["sparsity"] == 0.5
    assert layer["norm"] == "hessian"


def test_a_dense_model_is_not_simulated(tmp_path: Path) -> None:
    found = _run(StageStore(tmp_path / "cache"), compress={"steps": []}).finish().record
    perplexity = found.find("perplexity-pydoc", "perplexity")
    assert perplexity is not None
    assert perplexity.path == "reference"


def test_another_method_reuses_the_calibration_but_not_the_blocks(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    one = _run(store)
    two = _run(store, compress={"steps": [{"method": "wanda", "pattern": "50%"}]})
    assert one.checkpoint != two.checkpoint
    assert len(list((tmp_path / "cache").glob("calibration/??/*"))) == 1
    assert len(list((tmp_path / "cache").glob("block/??/*"))) == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"calibration": None}, "wanda needs calibration data"),
        ({"calibration": {**PYDOC, "seqlen": 4096}}, "longer than the 512 positions"),
        ({"model": {"id": "random:tiny-lama"}}, "Did you mean tiny-llama"),
        ({"model": {"id": "./absent"}}, "no such folder"),
        ({"evaluate": {"suites": ["perplexity-pydocs"]}}, "Did you mean perplexity-pydoc"),
        ({"evaluate": {"suites": [SUITE], "engine": "iree"}}, "no `lower:` section"),
        ({"lower": {"target": "vulcan"}}, "vulkan"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("trinity.harness.models.Decoder.load", forbidden)
    monkeypatch.setattr("trinity.harness.models.Decoder.load_outside_blocks", forbidden)
    with pytest.raises(ConfigError) as caught:
        _run(StageStore(tmp_path / "cache"), **changes)
    assert expected in str(caught.value)


def test_missing_data_are_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRINITY_DATA_DIR", str(tmp_path))
    with pytest.raises(MachineError, match="TRINITY_DATA_DIR"):
        _run(StageStore(tmp_path / "cache"), evaluate={"suites": ["perplexity-wikitext2"]})


def test_the_checkpoint_knows_its_recipe(tmp_path: Path) -> None:
    folder = _run(StageStore(tmp_path / "cache")).checkpoint
    summary = json.loads((folder / "trinity.json").read_text())
    assert summary["recipe"]["compress"]["steps"] == [{"method": "wanda", "pattern": "2:4"}]
    assert summary["calibration"]["seed"] == 0


def test_rounded_inputs_are_declared_recorded_and_simulated(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    plain = _run(store, compress={}).finish()
    compress = {"inputs": {"kind": "int8"}, "skip": ["*.down_proj"]}
    rounded = _run(store, compress=compress).finish()
    inputs = checkpoint.Checkpoint(rounded.checkpoint).inputs
    assert inputs["model.layers.0.mlp.up_proj"] == InputFormat("int8")
    assert "model.layers.0.mlp.down_proj" not in inputs
    assert rounded.record.checkpoint.inputs["model.layers.1.self_attn.q_proj"] == "int8 token"
    assert plain.record.checkpoint.inputs == {}
    found = [run.record.find("perplexity-pydoc", "perplexity") for run in (plain, rounded)]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0].path, found[1].path) == ("reference", "simulated")
    assert found[0].value != found[1].value


def test_the_simulation_rounds_the_input_of_every_declared_linear_and_of_no_other(
    tmp_path: Path,
) -> None:
    compress = {"inputs": {"kind": "fp8"}, "skip": ["*.down_proj"]}
    folder = _run(StageStore(tmp_path / "cache"), compress=compress).finish().checkpoint
    found = checkpoint.Checkpoint(folder)
    simulated, plain = found.load_model(), found.load_model()
    for name in found.inputs:
        linear = plain.get_submodule(name)
        linear._forward_pre_hooks.clear()
        forward = linear.forward
        # The definition: a linear whose input is replaced by the rounded one.
        linear.forward = lambda x, of=forward: of(InputFormat("fp8").rounded(x))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(simulated(ids).logits, plain(ids).logits)


def test_rounded_inputs_are_not_lowered_and_that_is_said_first(tmp_path: Path) -> None:
    compress = {"inputs": {"kind": "int8", "group_size": 16}}
    with pytest.raises(UnsupportedError, match=r"int8 group 16, and compiled modules read float"):
        _run(StageStore(tmp_path / "cache"), compress=compress, lower={"target": "llvm-cpu"})
