"""The program for a GPU machine: what a fault of one case costs, and what is read of the GPU."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.first_day import running
from benchmarks.gpu.first_day.rows import paired_interval
from benchmarks.gpu.first_day.running import Runner
from benchmarks.gpu.first_day.watching import Watch, numbers
from trinity.harness.statistics.intervals import paired_ratio

CASES = [{"kind": kind, "name": f"{kind} case", "target": "t"} for kind in ("device", "check")]
# A worker of three lines: it tells of its first case, and then does what a test says.
WORKER = """
import json, os, sys, time
pipe = os.fdopen(int(sys.argv[sys.argv.index("--pipe") + 1]), "w", buffering=1)
cases = json.loads(sys.argv[-1])
if cases[0] == 0:
    row = {"name": "device", "reason": None, "details": {}}
    pipe.write(json.dumps({"rows": [row]}) + chr(10))
"""


def rows_of(end: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of two cases and a third that is like the second, with workers that end in some way."""
    monkeypatch.setattr(running, "command", lambda: [sys.executable, "-c", WORKER + end])
    options = argparse.Namespace(bundle=Path(), repeats=1, rotate=1, timeout=2.0)
    runner = Runner(options, {"cases": [*CASES, CASES[1]]}, Watch("no-such-program"))
    found = list(runner.run([0, 1, 2]))
    assert [number for number, _ in found] == [0, 1, 2]
    return [row for _, rows in found for row in rows]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("print('a driver says why', flush=True); os.abort()", "SIGABRT.*a driver says why"),
        ("sys.exit(5)", "code 5"),
        ("time.sleep(60)", "not done within 2 s"),
    ],
)
def test_a_process_that_dies_or_hangs_costs_the_case_it_was_at(
    end: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, *lost = rows_of(end, monkeypatch)
    assert device["reason"] is None
    assert len(lost) == 2
    for row in lost:
        assert row["value"] is None
        assert row["metric"] == "relative_error"
        assert re.search(said, row["reason"])


# Of the program itself, with a worker that takes its time over the second case.
PROGRAM = """
import sys
from benchmarks.gpu.first_day import main, running
running.command = lambda: [sys.executable, "-c", {worker!r}]
sys.exit(main.main(["--bundle", {bundle!r}, "--out", {out!r}]))
"""


def test_what_was_done_before_sigterm_is_in_the_records(tmp_path: Path) -> None:
    record = {"model": {"label": "m"}, "recipe": {"name": "r"}, "lowering": None}
    manifest = {"cases": [case | {"record": "one"} for case in CASES], "records": {"one": record}}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest | {"commit": None, "dirty": False}))
    row = '{"name": "device", "engine": "e", "metric": "devices", "value": 1, "unit": "1", '
    worker = WORKER.replace('{"name": "device", ', f'{row}"interval": None, ')
    program = PROGRAM.format(
        worker=worker + "time.sleep(60)", bundle=str(tmp_path), out=str(tmp_path / "out")
    )
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout
    assert "device" in process.stdout.readline()
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert "SIGTERM: records hold what was done before" in said
    assert process.returncode == 1
    (path,) = (tmp_path / "out").rglob("*.json")
    assert [of["name"] for of in json.loads(path.read_text())["measurements"]] == ["device"]


def test_without_nvidia_smi_a_row_says_so() -> None:
    with Watch("no-such-program") as watch:
        seen = watch.between(0, time.monotonic())
    assert seen == {"gpu_sampled": "no-such-program is not there, so no clocks and no power"}


def test_clocks_and_power_are_those_of_the_time_of_a_case(tmp_path: Path) -> None:
    program = tmp_path / "smi"
    lines = ["#!/bin/sh", "echo 1980, 2619, 312.5, 61, 98", "echo 1755, 2619, N/A, 64, 99"]
    program.write_text("\n".join([*lines, "exec sleep 9"]), "utf-8")
    program.chmod(0o755)
    start = time.monotonic()
    with Watch(str(program)) as watch:
        while len(watch.samples) < 2:
            assert time.monotonic() < start + 10
            time.sleep(0.01)
        seen = watch.between(start, time.monotonic())
    assert seen["gpu_samples"] == 2
    assert seen["sm_mhz"] == [1755, 1867.5, 1980]
    assert seen["power_w"] == [312.5, 312.5, 312.5]
    assert watch.between(0, start) == {"gpu_samples": 0}


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    assert numbers("1980, [N/A], 300.25, 60, 5") == {
        "sm_mhz": 1980,
        "power_w": 300.25,
        "celsius": 60,
        "busy_percent": 5,
    }


def test_the_interval_of_a_speed_up_is_the_one_that_the_harness_computes() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.uniform(1, 2, 20), generator.uniform(1, 2, 20)
    expected = paired_ratio(a, b)
    assert expected
    assert paired_interval(list(a), list(b)) == expected.model_dump()
