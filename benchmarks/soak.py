"""Small runs, one after another: does memory, an open file, a thread or a temporary file grow?

    python benchmarks/soak.py --runs 1000                 # in one process
    python benchmarks/soak.py --runs 1000 --processes     # each in one of its own, on one store

A run compresses, evaluates, records and exports a tiny random model, each time afresh.  Prints a
table with a row for every tenth of the runs.
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trinity.harness.terminal.hush import hush_libraries

hush_libraries()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.faults import jobs, processes  # noqa: E402  after what they read is set


def once(place: Path, number: int) -> None:
    """One run that computes all of its stages: no other has its seed."""
    data = {**jobs.SMALL, "calibration": {**jobs.SMALL["calibration"], "seed": number}}
    data["name"] = f"run{number}"
    for name in processes.FOLDERS:
        (place / name).rename(place / f"{name}-{number}") if (place / name).exists() else None
    jobs.smoke(place, data)


def state(place: Path) -> dict[str, int]:
    """What may grow and must not."""
    gc.collect()
    process = psutil.Process()
    here = Path(tempfile.gettempdir())
    return {
        "resident MiB": process.memory_info().rss >> 20,
        "open files": process.num_fds(),
        "threads": threading.active_count(),
        "temporary files": len(list(here.glob("trinity-*"))) + len(list(place.rglob(".trinity-*"))),
        "locks": len(list((place / "store" / "locks").glob("*"))),
        "scratch": len(list((place / "store" / "scratch").glob("*"))),
        "here": len(list((place / "store" / "here").glob("*"))),
    }


def main() -> None:
    """Run, and print what it is like at each tenth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--processes", action="store_true")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        place = Path(folder) / "place"
        jobs.make_data(place / "data")
        for number in range(asked.runs):
            if asked.processes:
                code = processes.done(Path(folder, "said.txt"), once, place, number)
                if code:
                    sys.exit(Path(folder, "said.txt").read_text(encoding="utf-8"))
            else:
                once(place, number)
            if number == 0:
                print("| runs | seconds | " + " | ".join(state(place)) + " |")
                print("|---:" * (2 + len(state(place))) + "|")
            if (number + 1) % max(1, asked.runs // 10) == 0 or number == 0:
                found = state(place)
                took = f"{time.monotonic() - started:.0f}"
                print("| " + " | ".join([str(number + 1), took, *map(str, found.values())]) + " |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
