"""A checkpoint through the compiler, as a run sees it: store, both engines, suites."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from trinity.harness.checkpoints.block import TIMING
from trinity.harness.checkpoints.checkpoint import SUMMARY, Checkpoint
from trinity.harness.modules import module_stages
from trinity.harness.modules.module_stages import IreeEngine, lower
from trinity.harness.recipes import recipe
from trinity.harness.runs import requests
from trinity.harness.runs.one_model import evaluate_model
from trinity.harness.runs.outputs import lower_to
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Tiles

SLIM = [{"method": "slim", "pattern": "2:4"}]


def _run(
    store: StageStore,
    steps: list[dict[str, Any]],
    engine: str = "torch",
    dtype: str = "float32",
    inputs: dict[str, Any] | None = None,
    tune: dict[str, Any] | None = None,
    cache: dict[str, Any] | None = None,
    **bench: Any,
) -> Run:
    data: dict[str, Any] = {
        "name": "test",
        "model": {"id": "random:tiny-llama", "dtype": dtype},
        "compress": {"steps": steps, "inputs": inputs, "tune": tune, "cache": cache},
        "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 64, "rule": "concatenated"},
        "lower": {"target": "llvm-cpu", "length": 16, "context": 128 if cache else 96},
        "evaluate": {
            "suites": [{"suite": "perplexity-pydoc", "seqlen": 40, "windows": 2}],
            "engine": engine,
        },
        # Memory is measured in a process of its own, which `test_run.py` starts once.
        "bench": {"suites": ["prefill", "decode"], "prompt": 20, "new": 3, "repeats": 2, **bench},
    }
    return Run(recipe.parse(data, "test"), store, Reporter(quiet=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("tune", [None, {"method": "beam", "trial": 1, "epochs": 1}])
def test_the_compiled_suite_gives_torchs_numbers(
    store: StageStore, tune: dict[str, Any] | None
) -> None:
    """Of what BEAM tuned too: its formats are those before, and so is the module."""
    found = {
        engine: _run(store, SLIM, engine, tune=tune)
        .finish()
        .record.find("perplexity-pydoc", "perplexity")
        for engine in ("torch", "iree")
    }
    torchs, compiled = found["torch"], found["iree"]
    assert torchs is not None
    assert compiled is not None
    assert (torchs.path, compiled.path) == ("simulated", "kernel")
    assert compiled.samples == pytest.approx(torchs.samples, rel=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_module_keeps_its_cache_as_torch_rounds_it(store: StageStore, bits: int) -> None:
    cache = {"method": "rtn-cache", "bits": bits}
    runs = {name: _run(store, SLIM, name, cache=cache) for name in ("torch", "iree")}
    found = {name: run.finish().record for name, run in runs.items()}
    torchs, compiled, floats = (
        record.find("perplexity-pydoc", "perplexity")
        for record in (*found.values(), _run(store, SLIM).finish().record)
    )
    assert torchs is not None
    assert compiled is not None
    assert floats is not None
    assert found["iree"].checkpoint.cache == f"rtn-cache: int{bits} token and head"
    assert compiled.path == "kernel"
    off = max(abs(a / b - 1) for a, b in zip(compiled.samples, torchs.samples, strict=True))
    rounding = min(abs(a / b - 1) for a, b in zip(torchs.samples, floats.samples, strict=True))
    assert off < 1e-5  # the same sums in another order, and a code in a thousand that differs
    assert rounding > 3 * off  # or a cache that nobody rounds would pass
    model = runs["iree"].make_measuring().load("iree")
    assert isinstance(model, IreeEngine)
    config = Checkpoint.open(runs["iree"].compress()).config
    row = config.head_dim * bits // 8 + 4
    rows = 2 * config.num_hidden_layers * config.num_key_value_heads * 128
    assert model.compiled.cache_bytes == rows * row


def test_a_module_reads_the_norms_that_a_transform_changed(store: StageStore) -> None:
    """AWQ's int4 groups decode by the kernels that there are, beside norms of its scales."""
    steps = [
        {"method": "awq", "group_size": 32, "sequences": 1},
        {"method": "awq-clip", "group_size": 32},
    ]
    run = _run(store, steps, "iree")
    changed = Checkpoint.open(run.compress()).rest()
    before = dict(run.make_dense().decoder.uncompressed())
    name = "model.layers.0.input_layernorm.weight"
    assert not torch.allclose(changed[name], before[name], rtol=0.05)
    found = run.finish().record
    assert found.lowering is not None
    assert max(found.lowering.logit_errors.values()) < 1e-5
    torchs = _run(store, steps).finish().record.find("perplexity-pydoc", "perplexity")
    compiled = found.find("perplexity-pydoc", "perplexity")
    assert torchs is not None
    assert compiled is not None
    assert compiled.path == "kernel"
    assert compiled.samples == pytest.approx(torchs.samples, rel=1e-5)


def test_tiles_that_patch_learned_give_torchs_numbers_compiled(store: StageStore) -> None:
    steps = [{"method": "magnitude", "pattern": "2:4"}]
    tune = {"method": "patch", "prior": "steps", "tile": 32, "batch": 1, "sparsity": "30%"}
    runs = {engine: _run(store, steps, engine, tune=tune) for engine in ("torch", "iree")}
    made = Checkpoint.open(runs["torch"].compress())
    tiled = [f for f in made.formats.values() if isinstance(f.pattern, Tiles)]
    assert tiled
    found = {
        name: run.finish().record.find("perplexity-pydoc", "perplexity")
        for name, run in runs.items()
    }
    torchs, compiled = found["torch"], found["iree"]
    assert torchs is not None
    assert compiled is not None
    assert compiled.path == "kernel"
    assert compiled.samples == pytest.approx(torchs.samples, rel=1e-5)


def test_a_lowered_folder_is_evaluated_by_itself(store: StageStore, tmp_path: Path) -> None:
    """As its checkpoint was, when that and the store are gone."""
    run = _run(store, SLIM, "iree")
    spec, out = run.recipe.lower, tmp_path / "lowered"
    assert spec is not None
    made = lower_to(run.compress(), spec, None, out, store, Reporter(quiet=True))
    assert max(made["logit_errors"].values()) < 1e-5
    assert not {TIMING, SUMMARY} & {path.name for path in out.iterdir()}
    sizes = {"seqlen": 40, "windows": 2, "limit": None}
    asked = requests.evaluation(str(out), ["perplexity-pydoc"], sizes, "iree", "llvm-cpu")
    elsewhere = StageStore(tmp_path / "elsewhere")
    (found,) = evaluate_model(asked, elsewhere, Reporter(quiet=True))
    expected = run.finish().record.find("perplexity-pydoc", "perplexity")
    assert expected is not None
    assert (found.samples, found.path) == (expected.samples, expected.path)
    assert "seqlen_bounded_from" not in found.details
    asked = requests.evaluation(str(out), ["perplexity-pydoc"], {"windows": 1}, "iree", "llvm-cpu")
    (shorter,) = evaluate_model(asked, elsewhere, Reporter(quiet=True))
    assert (shorter.details["seqlen"], shorter.details["seqlen_bounded_from"]) == (96, 2048)


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
    lowered = run.make_measuring().lower()
    assert lowered is not None
    shapes = {
        tuple(report["format"]["shape"])
        for report in json.loads((run.compress() / "trinity.json").read_text())["layers"].values()
    }
    dense = {*shapes, *((b, a) for a, b in shapes)}
    with safe_open(lowered.parameters, framework="pt") as stream:
        for name in stream.keys():  # noqa: SIM118  # not a dict
            tensor = stream.get_tensor(name)
            assert not (tensor.is_floating_point() and tuple(tensor.shape) in dense), name


def test_the_engines_logits_are_the_same(store: StageStore) -> None:
    measuring = _run(store, SLIM).make_measuring()
    lowered = measuring.lower()
    assert lowered is not None
    ids = torch.randint(0, 258, (50,), generator=torch.Generator().manual_seed(3))
    ours, expected = lowered.load().logits(ids), measuring.dequantized.load().logits(ids)
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
    lowered = _run(store, SLIM).make_measuring().lower()
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
    measuring = _run(store, SLIM).make_measuring()
    ids = torch.randint(0, 258, (4, 30), generator=torch.Generator().manual_seed(3))
    decoded = []
    for name in ("torch", "iree"):
        session = measuring.load(name, batch=4).session()
        found = [session.prefill(ids[:, :20]), *(session.step(ids[:, i]) for i in range(20, 30))]
        decoded.append(torch.stack(found, dim=1))
    expected = torch.stack([measuring.dequantized.load().logits(sequence)[19:] for sequence in ids])
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


def test_modules_for_any_batch_share_one_parameter_file(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = _run(store, SLIM).make_measuring()
    reporter = Reporter(quiet=True)
    assert measuring.lower() is not None
    assert measuring.lower_spec is not None
    narrowing = Mock(wraps=module_stages.outside_of)
    monkeypatch.setattr(module_stages, "outside_of", narrowing)
    monkeypatch.setattr(Checkpoint, "open", Mock(side_effect=AssertionError("it is open")))
    four = lower(
        measuring.subject,
        measuring.lower_spec,
        store,
        reporter,
        batch=4,
    )
    assert four.parameters == measuring.lower().parameters
    assert four.module != measuring.lower().module
    assert four.fingerprint != measuring.lower().fingerprint
    assert narrowing.call_count == 1


def test_a_module_is_not_asked_about_tokens_beyond_its_vocabulary() -> None:
    """It would read other memory and give numbers."""

    class Compiled:
        max_length = 8

        def logits(self, ids: Tensor) -> Tensor:
            raise AssertionError(ids)

        def session(self) -> "Compiled":
            return self

        prefill = step = logits

    engine = IreeEngine(Compiled(), "compiled", 96)  # type: ignore[arg-type]
    session = engine.session()
    for asked, ids in (
        (engine.logits, [1, 96]),
        (session.prefill, [[1, 96]]),
        (session.step, [96]),
    ):
        with pytest.raises(ConfigError, match="vocabulary of 96"):
            asked(torch.tensor(ids))
