"""A checkpoint through the compiler, as a run sees it: store, both engines, suites."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from trinity.harness import recipe
from trinity.harness.compiled import lower
from trinity.harness.progress import Reporter
from trinity.harness.run import Run
from trinity.harness.store import StageStore

SLIM = [{"method": "slim", "pattern": "2:4"}]


def _run(
    store: StageStore,
    steps: list[dict[str, Any]],
    engine: str = "torch",
    dtype: str = "float32",
    inputs: dict[str, Any] | None = None,
    **bench: Any,
) -> Run:
    data: dict[str, Any] = {
        "name": "test",
        "model": {"id": "random:tiny-llama", "dtype": dtype},
        "compress": {"steps": steps, "inputs": inputs},
        "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 64, "rule": "concatenated"},
        "lower": {"target": "llvm-cpu", "length": 16, "context": 96},
        "evaluate": {
            "suites": [{"suite": "perplexity-pydoc", "seqlen": 40, "windows": 2}],
            "engine": engine,
        },
        "bench": {"prompt": 20, "new": 3, "repeats": 2, **bench},
    }
    return Run(recipe.parse(data, "test"), store, Reporter(quiet=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(tmp_path_factory.mktemp("store"))


def test_the_compiled_suite_gives_torchs_numbers(store: StageStore) -> None:
    found = {
        engine: _run(store, SLIM, engine).finish().record.find("perplexity-pydoc", "perplexity")
        for engine in ("torch", "iree")
    }
    torchs, compiled = found["torch"], found["iree"]
    assert torchs is not None
    assert compiled is not None
    assert (torchs.path, compiled.path) == ("simulated", "kernel")
    assert compiled.samples == pytest.approx(torchs.samples, rel=1e-5)


def test_a_record_says_how_far_the_module_is_from_torch(store: StageStore) -> None:
    info = _run(store, SLIM).finish().record.lowering
    assert info is not None
    assert info.logit_errors.keys() == {"prefill", "decode"}
    assert all(0 <= error <= info.tolerance for error in info.logit_errors.values())


def test_both_engines_are_timed_on_the_same_work(store: StageStore) -> None:
    found = _run(store, SLIM).finish().record
    for name in ("ttft", "tpot"):
        engines = {m.engine: m for m in found.measurements if m.name == name}
        assert engines.keys() == {"torch", "iree"}
        assert {len(m.samples) for m in engines.values()} == {2}


def test_another_method_of_the_same_format_compiles_nothing(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(store, SLIM).finish()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the module of this format is in the store")

    monkeypatch.setattr("trinity.lowering.lower.lower", forbidden)
    naive = [{"method": "slim", "pattern": "2:4", "saliency": "none"}]
    assert _run(store, naive).finish().record.lowering is not None


def test_the_modules_parameters_hold_no_dense_copy(store: StageStore) -> None:
    run = _run(store, SLIM)
    lowered = run.measuring.lowered
    assert lowered is not None
    shapes = {
        tuple(report["format"]["shape"])
        for report in json.loads((run.checkpoint / "trinity.json").read_text())["layers"].values()
    }
    dense = {*shapes, *((b, a) for a, b in shapes)}
    with safe_open(lowered.parameters, framework="pt") as stream:
        for name in stream.keys():  # noqa: SIM118  # not a dict
            tensor = stream.get_tensor(name)
            assert not (tensor.is_floating_point() and tuple(tensor.shape) in dense), name


def test_the_engines_logits_are_the_same(store: StageStore) -> None:
    measuring = _run(store, SLIM).measuring
    lowered = measuring.lowered
    assert lowered is not None
    ids = torch.randint(0, 258, (50,), generator=torch.Generator().manual_seed(3))
    ours, expected = lowered.engine.logits(ids), measuring.torch_engine.logits(ids)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_inputs_declared_of_eight_bits_are_rounded_in_the_module(store: StageStore) -> None:
    steps = [{"method": "rtn", "bits": 4, "group_size": 16}]
    run = _run(store, steps, inputs={"kind": "int8", "group_size": 16})
    info = run.finish().record.lowering
    assert info is not None
    # Rounded otherwise than declared, logits would be as far off as rounding takes them.
    assert max(info.logit_errors.values()) < info.tolerance / 4
    assert info.tolerance > 1e-3


@pytest.mark.parametrize("stage", ["torch", "annotated", "storage", "target"])
def test_every_stage_is_kept_as_text(store: StageStore, stage: str) -> None:
    lowered = _run(store, SLIM).measuring.lowered
    assert lowered is not None
    text = Path(lowered.module, f"{stage}.mlir").read_text()
    assert ("quant" in text, "sparse_tensor" in text) == ((stage == "annotated",) * 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_of_half_precision_is_compiled_in_its_own_type(
    store: StageStore, dtype: str
) -> None:
    info = _run(store, SLIM, dtype=dtype).finish().record.lowering
    assert info is not None
    assert max(info.logit_errors.values()) <= info.tolerance


def test_a_module_of_several_sequences_gives_torchs_logits(store: StageStore) -> None:
    measuring = _run(store, SLIM).measuring
    ids = torch.randint(0, 258, (4, 30), generator=torch.Generator().manual_seed(3))
    decoded = []
    for name in ("torch", "iree"):
        session = measuring.engine(name, batch=4).session()
        found = [session.prefill(ids[:, :20]), *(session.step(ids[:, i]) for i in range(20, 30))]
        decoded.append(torch.stack(found, dim=1))
    expected = torch.stack([measuring.torch_engine.logits(sequence)[19:] for sequence in ids])
    for found in decoded:
        assert torch.allclose(found, expected, atol=1e-5)


def test_every_batch_is_timed_on_both_engines_and_against_the_dense_model(
    store: StageStore,
) -> None:
    batches = {"suites": ["decode"], "batch": [1, 4], "baseline": "dense"}
    found = _run(store, SLIM, **batches).finish().record
    for name, batch in (("decode", 1), ("decode-batch-4", 4)):
        for engine in ("torch", "iree"):
            speed, speedup = (found.find(name, m, engine) for m in ("tokens_per_s", "speedup"))
            assert speed is not None
            assert speedup is not None
            assert (speed.details["batch"], speedup.details["batch"]) == (batch, batch)
            assert speedup.details["baseline_engine"] == "iree"


def test_modules_for_any_batch_share_one_parameter_file(store: StageStore) -> None:
    measuring = _run(store, SLIM).measuring
    reporter = Reporter(quiet=True)
    assert measuring.lowered is not None
    assert measuring.lower_spec is not None
    four = lower(
        measuring.subject,
        measuring.lower_spec,
        store,
        lambda: measuring.torch_engine,
        reporter,
        batch=4,
    )
    assert four.parameters == measuring.lowered.parameters
    assert four.module != measuring.lowered.module
    assert four.fingerprint != measuring.lowered.fingerprint
