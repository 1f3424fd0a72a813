"""`kill -9` at random moments of small runs: each resume ends with the same bytes, and nothing
half-written is ever seen.
"""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import jobs, processes

KILLS = 50 * processes.TIMES


@pytest.mark.parametrize(
    ("data", "share"),
    [(jobs.SMALL, 0.58), (jobs.TRAINED, 0.4), (jobs.LOWERED, 0.02)],  # the compiler takes seconds
    ids=["compress", "train", "lower"],
)
def test_runs_killed_at_random_moments_end_with_the_same_bytes(
    tmp_path: Path, data: dict[str, Any], share: float
) -> None:
    rng = random.Random(processes.SEED)
    whole = _place(tmp_path, "unbroken")
    processes.whole(whole, jobs.smoke, whole, data)
    started = time.monotonic()
    other = _place(tmp_path, "unbroken-too")
    processes.whole(other, jobs.smoke, other, data)
    took, expected = time.monotonic() - started, processes.left(whole)
    assert processes.left(other) == expected
    kills = runs = 0
    while kills < KILLS * share:
        runs += 1
        place = _place(tmp_path, f"run-{runs}")
        said = tmp_path / f"run-{runs}.txt"
        ended = False
        while not ended:
            with processes.started(said, jobs.smoke, place, data) as process:
                process.join(rng.uniform(0, took))
                ended = process.exitcode is not None
            assert not ended or process.exitcode == 0, said.read_text(encoding="utf-8")
            kills += not ended
            processes.check_visible(place, expected)
        assert processes.left(place) == expected
        processes.check_tidy(place)
    print(f"{kills} kills in {runs} runs of {took:.2f} s")


def _place(folder: Path, name: str) -> Path:
    place = folder / name
    jobs.make_data(place / "data")
    return place
