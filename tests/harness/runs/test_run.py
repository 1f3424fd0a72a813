import json
import shutil
from importlib.metadata import EntryPoint, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trinity.harness.accuracy import suites
from trinity.harness.checkpoints import checkpoint
from trinity.harness.recipes import recipe
from trinity.harness.records import record
from trinity.harness.runs.run import Run
from trinity.harness.store.spent import Seconds
from trinity.harness.store.stages import StageStore, read_json
from trinity.harness.terminal.progress import Reporter
from trinity.methods import plugins, registry
from trinity.methods.errors import ConfigError, MachineError, UnsupportedError
from trinity.methods.formats import InputFormat

PYDOC = {"dataset": "pydoc", "samples": 2, "seqlen": 64, "rule": "concatenated"}
SUITE_OF_A_PLUGIN = {
    "kind": "perplexity",
    "corpus": "pydoc",
    "split": "test",
    "seqlen": 64,
    "windows": 1,
}
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

    monkeypatch.setattr("trinity.harness.checkpoints.checkpoint.Checkpoint.load_model", forbidden)
    monkeypatch.setattr("trinity.harness.compress.entering.Entering.__init__", forbidden)
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


def test_the_record_and_the_checkpoint_name_every_plugin_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_plugin.py").write_text(
        "from trinity.methods.dense import DENSE\n"
        "MINE = type('Mine', (type(DENSE),), {'name': 'mine'})()\n"
        f"SUITE = {SUITE_OF_A_PLUGIN!r}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    places = {registry.GROUP: ("mine", "MINE", "1.2"), suites.GROUP: ("short", "SUITE", "3")}

    def installed(group: str) -> list[EntryPoint]:
        if group not in places:
            return []
        name, attribute, version = places[group]
        entry = EntryPoint(name, f"my_plugin:{attribute}", group)
        vars(entry)["dist"] = SimpleNamespace(name=f"dist-of-{name}", version=version)
        return [entry]

    monkeypatch.setattr(plugins, "installed", installed)
    suite = {"suites": [{"suite": "short"}]}
    store = StageStore(tmp_path / "cache")
    done = _run(store, compress={"steps": [{"method": "mine"}]}, evaluate=suite).finish()
    expected = {"dist-of-mine": "1.2", "dist-of-short": "3"}
    assert done.record.environment["plugins"] == expected
    assert read_json(done.checkpoint / "trinity.json")["plugins"] == {"dist-of-mine": "1.2"}


def test_a_dense_model_is_not_simulated(tmp_path: Path) -> None:
    found = _run(StageStore(tmp_path / "cache"), compress={"steps": []}).finish().record
    perplexity = found.find("perplexity-pydoc", "perplexity")
    assert perplexity is not None
    assert perplexity.path == "reference"


def test_what_transformers_computes_is_kept_under_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may read a text or run a model otherwise."""
    keys: dict[str, list[str]] = {}
    fill = StageStore.fill

    def noted(store: StageStore, kind: str, inputs: Any, write: Any) -> Path:
        keys.setdefault(kind, []).append(json.dumps(inputs))
        return fill(store, kind, inputs, write)

    monkeypatch.setattr(StageStore, "fill", noted)
    _run(StageStore(tmp_path / "cache")).finish()
    for kind in ("calibration", "block", "suite"):
        assert all(f'"transformers": "{version("transformers")}"' in key for key in keys[kind])
    for kind in ("calibration", "suite"):
        assert all(f'"tokenizers": "{version("tokenizers")}"' in key for key in keys[kind])


def test_another_method_reuses_the_calibration_but_not_the_blocks(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    one = _run(store)
    two = _run(store, compress={"steps": [{"method": "wanda", "pattern": "50%"}]})
    assert one.compress() != two.compress()
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

    monkeypatch.setattr("trinity.harness.models.decoder.Decoder.load", forbidden)
    monkeypatch.setattr("trinity.harness.models.decoder.Decoder.load_outside_blocks", forbidden)
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
    folder = _run(StageStore(tmp_path / "cache")).compress()
    summary = json.loads((folder / "trinity.json").read_text())
    assert summary["recipe"]["compress"]["steps"] == [{"method": "wanda", "pattern": "2:4"}]
    assert summary["calibration"]["seed"] == 0


def test_rounded_inputs_are_declared_recorded_and_simulated(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    plain = _run(store, compress={}).finish()
    compress = {"inputs": {"kind": "int8"}, "skip": ["*.down_proj"]}
    rounded = _run(store, compress=compress).finish()
    inputs = checkpoint.Checkpoint.open(rounded.checkpoint).inputs
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
    found = checkpoint.Checkpoint.open(folder)
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


def test_fp8_inputs_are_not_lowered_and_that_is_said_first(tmp_path: Path) -> None:
    compress = {"inputs": {"kind": "fp8"}}
    with pytest.raises(UnsupportedError, match=r"fp8 tensor, and compiled modules round to int8"):
        _run(StageStore(tmp_path / "cache"), compress=compress, lower={"target": "llvm-cpu"})


FIDELITY = {"suite": "fidelity-pydoc", "seqlen": 64, "windows": 2}


def test_a_compressed_model_is_compared_with_its_dense_one(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    found = _run(store, evaluate={"suites": [FIDELITY]}).finish().record
    kl = found.find("fidelity-pydoc", "kl")
    assert kl is not None
    assert kl.value is not None
    assert kl.value > 0
    dense = _run(store, compress={"steps": []}, evaluate={"suites": [FIDELITY]}).finish().record
    same = dense.find("fidelity-pydoc", "kl")
    assert same is not None
    assert same.value == pytest.approx(0.0, abs=1e-9)


def test_accuracy_measured_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        store = StageStore(tmp_path / name)
        _run(store, evaluate={"suites": [SUITE, FIDELITY]}).finish()
        measured = sorted((tmp_path / name).glob("suite/??/*/measurements.json"))
        texts.append([path.read_bytes() for path in measured])
        places = [path.parent.name for path in measured]
        assert len(places) == 2
    assert texts[0] == texts[1]


def test_several_seeds_spread_beside_the_interval_of_the_first(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    found = _run(store, calibration={**PYDOC, "seeds": [3, 4, 5]}).finish().record
    single = _run(store, calibration={**PYDOC, "seed": 3}).finish().record
    perplexity = found.find("perplexity-pydoc", "perplexity")
    alone = single.find("perplexity-pydoc", "perplexity")
    assert perplexity is not None
    assert alone is not None
    assert perplexity.seeds is not None
    assert len(set(perplexity.seeds.values)) == 3
    assert perplexity.seeds.values[0] == perplexity.value == alone.value
    assert perplexity.interval == alone.interval
    assert found.checkpoint.fingerprint == single.checkpoint.fingerprint
    assert found.calibration is not None
    assert [seed["seed"] for seed in found.calibration["seeds"]] == [3, 4, 5]
    assert len({seed["checkpoint"] for seed in found.calibration["seeds"]}) == 3


def test_a_dense_model_is_not_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a dense model needs no calibration pass")

    monkeypatch.setattr("trinity.harness.compress.entering.Entering.__init__", forbidden)
    found = _run(StageStore(tmp_path / "cache"), compress={"steps": []}).finish().record
    assert all(layer["relative_error"] == 0.0 for layer in found.checkpoint.layers.values())


def test_compression_is_timed_by_phase(tmp_path: Path) -> None:
    bench = {"suites": ["compress"]}
    found = _run(StageStore(tmp_path / "cache"), evaluate=None, bench=bench).finish().record
    for phase in ("calibration", "statistics", "solve"):
        seconds = found.find(f"compress-{phase}", "seconds")
        assert seconds is not None
        assert seconds.value is not None
        assert seconds.value > 0


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    bench = {"suites": ["memory"], "prompt": 8, "new": 2}
    found = _run(StageStore(tmp_path / "cache"), evaluate=None, bench=bench).finish().record
    peak = found.find("peak-memory", "resident_bytes", "torch")
    stored = found.find("stored", "stored_bytes")
    assert stored is not None
    assert stored.value == sum(found.checkpoint.stored_bytes.values())
    assert peak is not None
    if peak.value is not None:
        assert peak.details["before_loading_bytes"] < peak.value


def test_decoding_is_timed_against_the_dense_model_in_torch_without_a_word(
    tmp_path: Path,
) -> None:
    bench = {"suites": ["decode", "prefill"], "prompt": 8, "new": 2, "repeats": 2}
    store = StageStore(tmp_path / "cache")
    found = _run(store, evaluate=None, bench={**bench, "baseline": "dense"}).finish().record
    speedup = found.find("decode", "speedup", "torch")
    assert speedup is not None
    assert speedup.details["verdict"] == "not timed: dequantized weights"
    assert speedup.details["baseline_path"] == "reference"
    tpot = found.find("tpot", "tpot_s", "torch")
    assert tpot is not None
    assert tpot.details["floor_share"] > 0
    assert found.find("ceiling-matmul-float32", "matmul_flop_per_s") is not None


def test_every_batch_is_timed_for_itself(tmp_path: Path) -> None:
    bench = {"suites": ["decode", "prefill"], "prompt": 8, "new": 2, "repeats": 2, "batch": [1, 3]}
    found = _run(StageStore(tmp_path / "cache"), evaluate=None, bench=bench).finish().record
    floors = {}
    for batch, ending in ((1, ""), (3, "-batch-3")):
        ttft = found.find(f"ttft{ending}", "ttft_s")
        tpot = found.find(f"tpot{ending}", "tpot_s")
        assert ttft is not None
        assert tpot is not None
        assert (ttft.details["batch"], tpot.details["batch"]) == (batch, batch)
        floors[batch] = ttft.details["floor_s"], tpot.details["floor_s"]
    # A prompt of three sequences is three times the work; a step reads the weights once.
    assert floors[3] == pytest.approx((3 * floors[1][0], floors[1][1]))
    assert len({(m.name, m.metric, m.engine) for m in found.measurements}) == len(
        found.measurements
    )


@pytest.mark.parametrize("lower", [None, {"target": "llvm-cpu"}])
def test_a_batch_that_no_memory_holds_is_refused_before_anything_is_done(
    tmp_path: Path, lower: dict[str, str] | None
) -> None:
    store, batch = StageStore(tmp_path / "cache"), 10**12
    for suite in ("prefill", "decode"):
        with pytest.raises(MachineError, match=r"bench.batch 1000000000000: .* at least .* GB"):
            _run(store, lower=lower, bench={"suites": [suite], "batch": [1, batch]})
    # What reads one sequence whatever the batch is not refused for it.
    _run(store, lower=lower, bench={"suites": ["memory"], "batch": batch})


@pytest.mark.parametrize("lower", [None, {"target": "llvm-cpu", "context": 40}])
def test_a_sequence_that_nothing_holds_is_refused_before_anything_is_done(
    tmp_path: Path, lower: dict[str, Any] | None
) -> None:
    store, room = StageStore(tmp_path / "cache"), 40 if lower else 512
    bench = {"suites": ["decode"], "prompt": room - 8}
    with pytest.raises(ConfigError, match=rf"need {room + 1} positions, and .* has {room}\."):
        _run(store, lower=lower, bench={**bench, "new": 9})
    _run(store, lower=lower, bench={**bench, "new": 8})


def test_a_damaged_tokenizer_is_named_where_the_user_has_it(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    model = shutil.copytree(_run(store).source.path, tmp_path / "model")
    (model / "tokenizer.json").write_bytes(b"{")
    dense = {"model": {"id": str(model)}, "compress": {}, "calibration": None}
    with pytest.raises(ConfigError, match=f"{model}/tokenizer.json: is damaged"):
        _run(store, **dense)
    _run(store, **dense, evaluate=None)


def test_a_dense_model_is_one_checkpoint_for_every_seed(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    runs = [_run(store, calibration={**PYDOC, "seed": seed}) for seed in (0, 1)]
    assert runs[0].compress() != runs[1].compress()
    assert runs[0].make_dense().compress() == runs[1].make_dense().compress()


def test_a_record_counts_what_was_spent_on_its_run_elsewhere(tmp_path: Path) -> None:
    run = _run(StageStore(tmp_path / "cache"))
    found = run.finish({"compress": Seconds(1000.0, 1000.0)}).record
    spent = found.environment["spent_s"]
    assert spent["compress"] > 1000.0
    assert 0 < spent["evaluate"] < 1000.0
