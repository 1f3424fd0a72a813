import json
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks import large_model
from tests.faults import processes
from tests.harness import tiny
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.latency import ceilings, memory
from trinity.harness.models.decoder import skeleton
from trinity.harness.recipes import recipe
from trinity.harness.records import available
from trinity.harness.runs import memory_plan
from trinity.harness.runs.memory_plan import Peak
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError

GPTQ = {"steps": [{"method": "gptq", "bits": 4, "group_size": 16}]}
SMALL = large_model.sized(blocks=2, hidden=32, inner=48, vocabulary=256)
CPU = torch.device("cpu")
TEXT = {"dataset": "pydoc", "samples": 3, "seqlen": 16}


def planned(folder: Path, here: int = 0, **sections: Any) -> dict[str, Peak]:
    data = {"model": {"id": str(folder / "model")}, "compress": GPTQ, "calibration": TEXT}
    run = Run(
        recipe.parse({"name": "r", **data, **sections}, "test"),
        StageStore(folder / "store"),
        Reporter(quiet=True),
    )
    return {peak.part: peak for peak in memory_plan.peaks(run, here)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    large_model.make(tmp_path / "model", SMALL)
    return tmp_path


def test_what_is_held_is_counted_from_the_models_shapes(folder: Path) -> None:
    hidden, inner = SMALL.hidden_size, SMALL.intermediate_size
    peak = planned(folder)["compress"]
    inputs = [hidden, hidden, hidden, inner]  # of the four groups of a block
    squares = [4 * size**2 for size in inputs]
    solving = {"solving", "factoring X^T X"}
    assert peak.moment in {*solving, "collecting statistics", "reading the text"}
    held = [held for moment, held in _moments(folder) if moment == "collecting statistics"]
    assert held[0]["X^T X of its inputs"] == sum(squares)
    factored = [held["its factor, twice"] for moment, held in _moments(folder) if "fact" in moment]
    assert factored == [2 * square for square in squares]


def test_a_part_of_the_text_that_is_held_out_has_second_moments_of_its_own(folder: Path) -> None:
    def statistics(decides: str) -> int:
        optima = {"method": "optima", "decides": decides}
        steps = {"steps": [{"method": "wanda", "pattern": "2:4"}, optima]}
        return dict(_moments(folder, steps))["collecting statistics"]["X^T X of its inputs"]

    assert statistics("held-out") == 2 * statistics("calibration")


def test_singular_vectors_are_held_where_an_adapter_is_fitted(folder: Path) -> None:
    hidden, inner = SMALL.hidden_size, SMALL.intermediate_size
    plain = {"steps": [{"method": "wanda", "pattern": "2:4"}]}
    assert "fitting an adapter" not in dict(_moments(folder, plain))
    fitted = [
        held
        for moment, held in _moments(folder, {"steps": [{"method": "slim", "pattern": "2:4"}]})
        if moment == "fitting an adapter"
    ]
    less, more = sorted((hidden, inner))
    # The error's copy and the vectors on both sides, and what LAPACK works in.
    found = [held["singular vectors and values"] for held in fitted]
    assert max(found) == 4 * (2 * less * more + 5 * less**2)


def _moments(folder: Path, compress: Any = GPTQ) -> list[tuple[str, dict[str, int]]]:
    """All moments of a compression, and what is held then."""
    data = {"name": "r", "model": {"id": str(folder / "model")}, "compress": compress}
    asked = recipe.parse({**data, "calibration": TEXT}, "test")
    run = Run(asked, StageStore(folder / "store"), Reporter(quiet=True))
    return memory_plan._compressing(run, 0)


def test_less_is_held_where_less_is_asked_for(folder: Path) -> None:
    whole = planned(folder)["compress"].total
    one_by_one = planned(folder, compress={**GPTQ, "order": "true-sequential"})["compress"].total
    without = {"steps": [{"method": "rtn", "group_size": 16}]}
    assert planned(folder, compress=without)["compress"].total < one_by_one <= whole
    assert planned(folder, here=1000)["compress"].total == whole + 1000


def test_a_search_holds_the_whole_model_and_the_logits_of_two(folder: Path) -> None:
    search = {"method": "evopress", "survivors": [1], "tokens": [16]}
    steps = {"steps": [search, {"method": "wanda", "pattern": "50%"}]}
    held = dict(_moments(folder, steps))["trying whole models"]
    whole = sum(p.nbytes for p in skeleton(SMALL, torch.float32).parameters())
    assert held["the model in torch"] == whole
    assert held["logits"] == 4 * 16 * SMALL.vocab_size * 4
    assert "trying whole models" not in dict(_moments(folder))


def test_every_part_of_the_run_is_planned_and_the_dense_model_where_it_is_compared(
    folder: Path,
) -> None:
    suite = {"suite": "perplexity-pydoc", "seqlen": 16, "windows": 2}
    sections = {"lower": {"target": "llvm-cpu"}, "bench": {"prompt": 4, "new": 2}}
    found = planned(folder, evaluate={"suites": [suite]}, **sections)
    assert list(found) == ["compress", "lower", "evaluate", "bench"]
    assert "the dense model" not in found["evaluate"].held
    compared = planned(folder, evaluate={"suites": [suite | {"suite": "fidelity-pydoc"}]})
    assert compared["evaluate"].held["the dense model"] > 0


def test_a_compiled_module_is_planned_by_its_packed_parameters_and_not_the_model_in_torch(
    folder: Path,
) -> None:
    suite = {"suite": "perplexity-pydoc", "seqlen": 16, "windows": 2}
    lower = {"target": "llvm-cpu"}
    found = planned(folder, lower=lower, evaluate={"engine": "iree", "suites": [suite]})
    held = found["evaluate"].held
    assert "the model in torch" not in held
    in_torch = planned(folder, evaluate={"suites": [suite]})["evaluate"].held["the model in torch"]
    assert held["the module's parameters"] < in_torch


def test_what_cannot_fit_is_refused_with_its_arithmetic_and_what_to_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Peak("compress", "solving", {"libraries": 10**9, "X^T X of its inputs": 10**10})]
    monkeypatch.setattr(available, "total_bytes", lambda: 8 * 10**9)
    with pytest.raises(
        MachineError,
        match=r"compress would take 11\.0 GB of memory while solving \(libraries 1\.00 GB, "
        r"X\^T X of its inputs 10\.00 GB\), and this machine gives 8\.0 GB\. Use `model\.dtype",
    ):
        memory_plan.check(found, CPU)
    monkeypatch.setattr(available, "total_bytes", lambda: 10**10)
    memory_plan.check(found, CPU)  # within what a plan may be wrong by


def test_a_gpus_memory_is_planned_apart_from_the_machines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = {"suite": "fidelity-pydoc", "seqlen": 16, "windows": 2}
    data = {"name": "r", "model": {"id": str(folder / "model")}, "compress": GPTQ}
    sections = {
        "calibration": TEXT,
        "lower": {"target": "llvm-cpu"},
        "evaluate": {"suites": [suite]},
        "bench": {"prompt": 4, "new": 2},
    }
    asked = recipe.parse({**data, **sections}, "test")
    run = Run(asked, StageStore(folder / "store"), Reporter(quiet=True))
    on_cpu = {peak.part: peak for peak in memory_plan.peaks(run, 1000)}
    assert memory_plan.gpu_peaks(run) == []
    monkeypatch.setattr(run, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 10**9, 16 * 10**9))
    host = {peak.part: peak for peak in memory_plan.peaks(run, 1000)}
    gpu = {peak.part: peak for peak in memory_plan.gpu_peaks(run)}
    # Lowering and the compiled module's parameters stay with the machine.
    assert list(gpu) == ["compress", "evaluate", "bench"]
    assert "the module's parameters" in host["bench"].held
    for part, whole in on_cpu.items():
        apart = dict(host[part].held) | dict(gpu[part].held if part in gpu else {})
        assert apart == whole.held
    assert "libraries" not in gpu["compress"].held


@pytest.mark.parametrize(
    ("part", "device"),
    [("evaluate", "cpu"), ("lower", "cpu"), ("bench", "cpu"), ("compress", "cuda")],
)
def test_what_was_not_compared_with_measured_runs_is_never_refused(
    part: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available, "total_bytes", lambda: 8 * 10**9)
    memory_plan.check([Peak(part, "a moment", {"libraries": 10**12})], torch.device(device))


GPTQ_STEP = {"method": "gptq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("blocks", "step"), [(8, GPTQ_STEP), (1, {"method": "slim", "pattern": "2:4"})]
)
def test_the_measured_peak_of_compression_is_what_was_planned(
    tmp_path: Path, blocks: int, step: dict[str, Any]
) -> None:
    if not memory.reset_peak():
        pytest.skip("this system cannot reset a process's peak")
    config = large_model.sized(blocks=blocks, hidden=1024, inner=2816, vocabulary=512)
    size = large_model.make(tmp_path / "model", config)
    data = {
        "name": "r",
        "model": {"id": str(tmp_path / "model"), "dtype": "bfloat16"},
        "compress": {"steps": [step]},
        "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 64},
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Run(recipe.parse(data, "test"), StageStore(tmp_path / "store"), Reporter(quiet=True))
    run.draw_calibration()  # the text is read, and what reads it is imported
    available.give_back()
    here = memory.resident_bytes()
    (plan,) = memory_plan.peaks(run, here)
    _, peak = memory.peak_during(run.compress)
    torch.set_num_threads(threads)
    assert peak is not None
    assert peak == pytest.approx(plan.total, rel=memory_plan.WITHIN)
    if blocks > 1:  # a model that would stand out: all of it in float32 is twice its size
        assert peak - here - memory_plan.AT_WORK < 1.5 * size


def _within_limit(folder: Path) -> None:
    """Compress in a process that may not have as much memory as the model, and write down (limit,
    bytes of the model, the checkpoint).
    """
    torch.set_num_threads(1)
    data = {
        "name": "r",
        "model": {"id": str(folder / "model"), "dtype": "bfloat16"},
        "compress": {
            "steps": [{"method": "wanda", "pattern": "2:4"}],
            "order": "true-sequential",
        },
        "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 64},
    }
    run = Run(recipe.parse(data, "test"), StageStore(folder / "store"), Reporter(quiet=True))
    run.draw_calibration()
    available.give_back()
    (plan,) = memory_plan.peaks(run, 0)
    more = plan.total
    limit = psutil.Process().memory_info().data + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    made = run.compress()
    size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    with pytest.raises(RuntimeError, match="memory"):
        torch.empty(size, dtype=torch.uint8)
    (folder / "found.json").write_text(json.dumps([more, size, str(made)]))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts private pages on Linux")
def test_a_model_that_is_larger_than_the_memory_is_compressed(tmp_path: Path) -> None:
    config = large_model.sized(blocks=16, hidden=768, inner=2048, vocabulary=512)
    large_model.make(tmp_path / "model", config)
    said = tmp_path / "said.txt"
    code = processes.done(said, _within_limit, tmp_path, seconds=300)
    assert code == 0, said.read_text(encoding="utf-8")
    more, size, made = json.loads((tmp_path / "found.json").read_text())
    assert more < 0.8 * size
    assert len(Checkpoint.open(Path(made)).formats) == 16 * 7


def _compare(folder: Path, part: str, dtype: str, sections: dict[str, Any]) -> None:
    """Do one part of a run whose checkpoint is there, in a process that has done nothing else, and
    write down (planned, peak).
    """
    torch.set_num_threads(1)
    data = {
        "name": "r",
        "model": {"id": str(folder / "model"), "dtype": dtype},
        "compress": {"steps": [{"method": "rtn", "bits": 4, "group_size": 128}]},
        **sections,
    }
    run = Run(recipe.parse(data, "test"), StageStore(folder / "store"), Reporter(quiet=True))
    run.compress()
    for name, value in tiny.CEILINGS.items():
        setattr(ceilings, name, value)  # this process ends
    ceilings.kept(run.store)  # with a buffer of its own, once for a machine
    available.give_back()
    plans = {peak.part: peak for peak in memory_plan.peaks(run, memory.resident_bytes())}
    _, peak = memory.peak_during(lambda: _do(run))
    (folder / "found.json").write_text(json.dumps([plans[part].total, peak]))


def _do(run: Run) -> None:
    asked = run.recipe
    if asked.evaluate:
        run.make_measuring().evaluate(asked.evaluate)
    if asked.bench:
        run.make_measuring().bench(asked.bench, asked.engines)


def _check(folder: Path, part: str, dtype: str, **sections: Any) -> None:
    # One that stands out of what libraries take.
    config = large_model.sized(blocks=4, hidden=1024, inner=2816, vocabulary=8192)
    large_model.make(folder / "model", config)
    said = folder / "said.txt"
    code = processes.done(said, _compare, folder, part, dtype, sections, seconds=600)
    assert code == 0, said.read_text(encoding="utf-8")
    planned, peak = json.loads((folder / "found.json").read_text())
    if peak is None:
        pytest.skip("this system cannot reset a process's peak")
    assert peak == pytest.approx(planned, rel=memory_plan.WITHIN)


@pytest.mark.parametrize(
    ("suite", "dtype"), [("perplexity-pydoc", "bfloat16"), ("fidelity-pydoc", "float32")]
)
def test_the_measured_peak_of_evaluating_is_what_was_planned(
    suite: str, dtype: str, tmp_path: Path
) -> None:
    suites = {"suites": [{"suite": suite, "seqlen": 128, "windows": 2}]}
    _check(tmp_path, "evaluate", dtype, evaluate=suites)


@pytest.mark.parametrize("baseline", [None, "dense"])
def test_the_measured_peak_of_timing_is_what_was_planned(
    baseline: str | None, tmp_path: Path
) -> None:
    bench = {"suites": ["decode"], "prompt": 16, "new": 2, "repeats": 1, "baseline": baseline}
    _check(tmp_path, "bench", "float32", bench=bench)
