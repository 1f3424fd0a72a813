"""Signals in the midst of a command, and too little memory: how it ends, and that it goes on."""

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.faults import jobs, processes
from trinity.harness import cli
from trinity.methods import registry
from trinity.methods.errors import MachineError

SECRET = "hf_" + "NotAToken" * 4


def _run(place: Path) -> None:
    """`trinity run` of the small recipe."""
    torch.set_num_threads(1)
    os.environ |= {"TRINITY_DATA_DIR": str(place / "data"), "TRINITY_CACHE": str(place / "store")}
    os.environ |= {"HF_TOKEN": SECRET, "HUGGING_FACE_HUB_TOKEN": SECRET}
    recipe, out = str(place / "recipe.yaml"), str(place / "results")
    sys.argv = ["trinity", "run", recipe, "--out", out]
    cli.main()


def _begun(place: Path) -> set[str]:
    """Runs that have begun, by the accounts of what they cost."""
    return {path.name for path in (place / "results" / "attempts").glob("*.json")}


def _place(folder: Path) -> Path:
    jobs.make_data(folder / "data")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(jobs.TRAINED), encoding="utf-8")
    return folder


def test_a_signal_at_a_random_moment_ends_with_its_code_and_the_command_goes_on(
    tmp_path: Path,
) -> None:
    rng = random.Random(processes.SEED)
    whole = _place(tmp_path / "whole")
    processes.whole(whole, _run, whole)
    expected = processes.left(whole)
    for number in (signal.SIGINT, signal.SIGTERM):
        place = _place(tmp_path / number.name)
        said, stopped = tmp_path / f"{number.name}.txt", 0
        for _ in range(10 * processes.TIMES):
            if stopped >= 3 * processes.TIMES:
                break
            before = _begun(place)
            with processes.started(said, _run, place) as process:
                until = time.monotonic() + 60
                while _begun(place) == before and process.is_alive():
                    assert time.monotonic() < until
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.3))
                assert process.pid
                if process.is_alive():
                    os.kill(process.pid, number)
                process.join(60)
                text = said.read_text(encoding="utf-8")
                assert process.exitcode in (0, 128 + number), text
            if process.exitcode:
                stopped += 1
                assert "Finished stages are kept" in text
                assert "Traceback" not in text
            processes.check_visible(place, expected)
        assert stopped
        processes.whole(place, _run, place)
        assert processes.left(place) == expected
        processes.check_tidy(place)


def test_a_token_of_the_hub_is_in_nothing_that_is_written_or_said(tmp_path: Path) -> None:
    place = _place(tmp_path / "place")
    processes.whole(place, _run, place)
    said = (tmp_path / "place.txt").read_bytes()
    written = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not any(SECRET.encode() in content for content in (said, *written))


def _without_memory() -> None:
    used = Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]
    most = int(used) * resource.getpagesize() + (1 << 28)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    registry.names = lambda: [str(torch.zeros(1 << 30))]  # this process ends
    sys.argv = ["trinity", "methods", "list"]
    cli.main()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc")
def test_a_command_without_enough_memory_says_what_to_change(tmp_path: Path) -> None:
    code = processes.done(tmp_path / "said.txt", _without_memory)
    text = (tmp_path / "said.txt").read_text(encoding="utf-8")
    assert code == MachineError.exit_code, text
    assert text.startswith("trinity: the memory was not enough (")
    assert "calibration.samples" in text
