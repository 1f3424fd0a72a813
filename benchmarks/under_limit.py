"""A recipe under a hard limit of memory: every block's seconds and peak, then decoded tokens.

    python benchmarks/large_model.py FOLDER --blocks 24 --inner 8192
    python benchmarks/under_limit.py RECIPE.yaml --limit 3000000000 --json FILE

The limit is a memory control group (Linux, version 1 or 2; making one takes root): beyond it the
system first drops pages of files and then kills.  The group is removed at the end.  Every block is
a line of FILE when it is finished.  Killed or stopped, the same command goes on from the stage
store, and adds its lines to the file's.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup")
PROMPT, NEW = 16, 16  # tokens


def main() -> None:
    """Start the work in a group of its own, and wait for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--limit", type=int, default=3_000_000_000, help="bytes")
    parser.add_argument("--json", type=Path, required=True, help="to which lines are added")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        work(asked.recipe, Lines(asked.json))
        return
    with group(asked.limit) as made:
        command = [sys.executable, __file__, str(asked.recipe), "--json", str(asked.json)]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        process = subprocess.Popen([*command, "--inside"], preexec_fn=lambda: join(made))
        try:
            sys.exit(process.wait())
        finally:  # a group with a process in it cannot be removed
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            process.kill()
            process.wait()


@contextmanager
def group(limit: int) -> Iterator[Path]:
    """A memory control group with a limit in bytes."""
    version_1 = (GROUPS / "memory").is_dir()
    made = (GROUPS / "memory" if version_1 else GROUPS) / f"trinity-{os.getpid()}"
    made.mkdir()
    try:
        name = "memory.limit_in_bytes" if version_1 else "memory.max"
        (made / name).write_text(str(limit), encoding="utf-8")
        yield made
    finally:
        made.rmdir()


def join(made: Path) -> None:
    """Make this process one of a group's."""
    (made / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")


class Lines:
    """A file of facts, one a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **fact: Any) -> None:
        """One line, on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fact, sort_keys=True) + "\n")


def work(path: Path, lines: Lines) -> None:
    """Compress, lower where the recipe says so, decode.  In the group."""
    from trinity.harness.latency import ceilings, memory
    from trinity.harness.recipes import recipe
    from trinity.harness.records import available
    from trinity.harness.records.environment import environment
    from trinity.harness.runs import estimate, memory_plan
    from trinity.harness.runs.run import Run
    from trinity.harness.store.stages import StageStore, default_root

    asked = recipe.read(path, [])
    uncache(Path(asked.model.id))
    store = StageStore(default_root())
    watch = _watch(lines, store)
    run = Run(asked, store, watch)
    run.draw_calibration()  # the text is read, and what reads it is imported
    available.give_back()
    here = memory.resident_bytes()
    found = memory_plan.peaks(run, here)
    memory_plan.check(found, run.device)
    row = estimate.of_row(asked, estimate.size_of(run.source.path), ceilings.kept(store))
    lines.add(
        event="begun",
        recipe=asked.model_dump(mode="json"),
        environment=environment(),
        limit=available.total_bytes(),
        planned={peak.part: peak.total for peak in found},
        planned_s=row.seconds,
        resident=here,
    )
    watch.reset()
    run.compress()
    lines.add(event="compressed", seconds=watch.since_reset(), peak=memory.high_water_bytes())
    if asked.lower is None:
        return
    watch.reset()
    made = run.make_measuring().lower()
    assert made is not None
    peak = memory.high_water_bytes()
    errors = made.info.logit_errors
    lines.add(event="lowered", seconds=watch.since_reset(), peak=peak, logit_errors=errors)
    watch.reset()
    tokens = decode(run)
    peak = memory.high_water_bytes()
    lines.add(event="decoded", tokens=tokens, seconds=watch.since_reset(), peak=peak)


def uncache(folder: Path) -> None:
    """Drop the model's files from the page cache: a page counts for whichever group read it."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def decode(run: Any) -> list[int]:
    """The likeliest tokens after a prompt, by the compiled module."""
    from trinity.harness.latency import generate

    session = run.make_measuring().load("iree").session()
    logits = session.prefill(generate.fixed_tokens(64, (1, PROMPT), 0))
    said = []
    for _ in range(NEW):
        token = logits.reshape(1, -1, logits.shape[-1])[:, -1].argmax(-1)
        said.append(int(token))
        logits = session.step(token)
    return said


def _watch(lines: Lines, store: Any) -> Any:
    # Imported here: only the process with the limit needs it.
    from trinity.harness.latency import memory
    from trinity.harness.terminal.progress import Reporter

    class Watch(Reporter):
        """Notes seconds and peak of every block, and whether it was in the store."""

        def reset(self) -> None:
            memory.reset_peak()
            self.begun = self.all = time.perf_counter()
            self.worked = time.process_time()
            self.made = store.made

        def since_reset(self) -> float:
            return time.perf_counter() - self.all

        def step(self, name: str, done: int, total: int) -> None:
            now = time.perf_counter()
            lines.add(
                event="block",
                name=name,
                index=done,
                of=total,
                seconds=now - self.begun,
                processor_s=time.process_time() - self.worked,
                peak=memory.high_water_bytes(),
                resident=memory.resident_bytes(),
                from_store=store.made == self.made,
            )
            memory.reset_peak()
            self.begun, self.worked, self.made = now, time.process_time(), store.made

    return Watch()


if __name__ == "__main__":
    main()
