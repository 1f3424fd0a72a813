"""A whole sweep, interrupted and taken up again, beside the same runs made one by one."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import yaml

from tests.faults import jobs, processes
from trinity.harness import cli
from trinity.harness.latency import ceilings, machine
from trinity.harness.recipes import recipe
from trinity.harness.records import record
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.sweeps import local_pool
from trinity.harness.terminal.progress import Reporter

SUITES = [
    {"suite": "perplexity-wikitext2", "seqlen": 32, "windows": 2},
    {"suite": "fidelity-wikitext2", "seqlen": 32, "windows": 2},
]
RECIPES = {
    "dense": {"evaluate": {"suites": SUITES[:1]}},
    "wanda": {
        "compress": {"steps": [{"method": "wanda", "pattern": "2:4"}]},
        "calibration": {"dataset": "wikitext2", "samples": 2, "seqlen": 32},
        "evaluate": {"suites": SUITES},
    },
    "rtn": {
        "compress": {"steps": [{"method": "rtn", "bits": 4, "group_size": 64}]},
        "calibration": {"dataset": "wikitext2", "samples": 2, "seqlen": 32, "seeds": [0, 1]},
        "evaluate": {"suites": SUITES},
    },
}
PARTS = 4 + 4 + 3  # checkpoints, of `rtn` one a seed; each evaluated; and a record a run


def _place(folder: Path) -> Path:
    jobs.make_data(folder / "data")
    for name, data in RECIPES.items():
        text = yaml.safe_dump({"model": {"id": "random:tiny-llama"}, **data})
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    names = [f"{name}.yaml" for name in RECIPES]
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"recipes": names}), encoding="utf-8")
    return folder


def _of_small_machine(place: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"TRINITY_DATA_DIR": str(place / "data"), "TRINITY_CACHE": str(place / "store")}
    ceilings._BUFFER, ceilings._SIDES, ceilings._LEAST_S = 1 << 16, (4, 8), 0.0


def _sweep(place: Path) -> None:
    """`trinity sweep`, two parts at once."""
    _of_small_machine(place)
    local_pool._context = processes.context  # type: ignore[assignment]  # this process ends
    machine.usable_cpus = lambda: 2
    sys.argv = ["trinity", "sweep", str(place / "sweep.yaml"), "--out", str(place / "results")]
    cli.main()


def _one_by_one(place: Path) -> None:
    _of_small_machine(place)
    for name in RECIPES:
        asked, store = recipe.read(place / f"{name}.yaml", []), StageStore(place / "store")
        record.write(Run(asked, store, Reporter(quiet=True)).finish().record, place / "results")


def _left(place: Path) -> dict[str, str]:
    """Without the machine's ceilings, which only a plan asks for, and they are times."""
    left = processes.left(place)
    return {name: found for name, found in left.items() if not name.startswith("store/ceilings")}


def test_a_sweep_that_is_interrupted_goes_on_and_leaves_what_runs_one_by_one_leave(
    tmp_path: Path,
) -> None:
    one_by_one, place = _place(tmp_path / "one-by-one"), _place(tmp_path / "sweep")
    processes.whole(one_by_one, _one_by_one, one_by_one)
    said = tmp_path / "interrupted.txt"
    with processes.started(said, _sweep, place) as process:
        _wait_for_a_record(place)
        assert process.pid
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == cli.INTERRUPTED, said.read_text(encoding="utf-8")
    assert "the same command goes on" in said.read_text(encoding="utf-8")
    assert len(list((place / "results" / "v1").rglob("*.json"))) < len(RECIPES)
    processes.whole(place, _sweep, place)
    assert _left(place) == _left(one_by_one)
    processes.check_tidy(place)
    lines = (tmp_path / "sweep.txt").read_text(encoding="utf-8")
    assert f"{PARTS} of {PARTS}: record rtn on random:tiny-llama" in lines


def _wait_for_a_record(place: Path) -> None:
    until = time.monotonic() + 120
    while not list((place / "results" / "v1").rglob("*.json")):
        assert time.monotonic() < until
        time.sleep(0.005)
