"""Cases in worker processes: one at a time, another after a fault."""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from benchmarks.gpu.first_day.rows import Row, failed
from benchmarks.gpu.first_day.watching import Watch
from benchmarks.gpu.first_day.worker import LONGEST

# What a case measures, for the row that says that it could not be.
METRICS = {
    "device": "devices",
    "check": "relative_error",
    "decode": "tokens_per_s",
    "layer": "seconds",
    "alone": "seconds",
    "bandwidth": "bytes_per_s",
}


class Runner:
    """Runs cases of a bundle by their numbers."""

    def __init__(self, options: argparse.Namespace, manifest: dict[str, Any], watch: Watch) -> None:
        """environment: of the machine, as workers tell it"""
        self.options, self.cases, self.watch = options, manifest["cases"], watch
        self.environment: dict[str, Any] = {"machine": os.uname().machine, "gpu": None}

    def run(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Row]]]:
        """The rows of every case.  The first is a probe: if it fails, no other one is tried."""
        for place, (number, message) in enumerate(self._all(numbers)):
            case = self.cases[number]
            rows = message.get("rows") or [self._failed(case, message["error"])]
            for row in rows:
                row["details"] |= message["seen"]
            yield number, rows
            if place == 0 and "error" in message:
                for other in numbers[1:]:
                    lost = [self._failed(self.cases[other], f"not tried: {message['error']}")]
                    yield other, lost
                return

    def _failed(self, case: dict[str, Any], why: str) -> Row:
        known = {key: case[key] for key in ("path", "engine") if key in case}
        details = {key: case[key] for key in ("rows", "dtype") if key in case}
        return failed(case["name"], METRICS[case["kind"]], why, details=details, **known)

    def _all(self, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """A message for each case: its rows, or the error; and what was seen of the GPU."""
        done = 0
        while done < len(numbers):
            for number, message in self._worker(numbers[done:]):
                done += 1
                yield number, message

    def _worker(self, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The messages of one process: of all cases, or up to the first that failed."""
        ours, theirs = os.pipe()
        words = ["--worker", "--bundle", str(self.options.bundle.resolve())]
        words += ["--pipe", str(theirs), "--repeats", str(self.options.repeats)]
        words += ["--rotate", str(self.options.rotate), "--cases", json.dumps(list(numbers))]
        # Not buffered: `select` knows nothing of what a buffer holds.
        with tempfile.TemporaryFile() as log, os.fdopen(ours, "rb", buffering=0) as pipe:
            process = subprocess.Popen(
                [*command(), *words], stdout=log, stderr=subprocess.STDOUT, pass_fds=(theirs,)
            )
            os.close(theirs)
            try:
                for number in numbers:
                    start = time.monotonic()
                    message = self._message(process, pipe)
                    if message is None:
                        message = {"error": f"{end_of(process)} {last_words(log)}".strip()}
                    message["seen"] = self.watch.between(start, time.monotonic())
                    yield number, message
                    if "error" in message:
                        return
            finally:
                process.kill()
                process.wait()

    def _message(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> dict[str, Any] | None:
        """What a worker says of its next case; None if it ended without a word."""
        ready, _, _ = select.select([pipe], [], [], self.options.timeout)
        if not ready:
            return {"error": f"not done within {self.options.timeout:.0f} s, and stopped."}
        line = pipe.readline()
        if not line:
            process.wait()
            return None
        message: dict[str, Any] = json.loads(line)
        if "environment" in message:  # a process says this first
            self.environment = message["environment"]
            return self._message(process, pipe)
        return message


def command() -> list[str]:
    """That starts this program again: the file that Python was given, or this package."""
    program = sys.argv[0]
    if program.endswith(".pyz"):
        return [sys.executable, program]
    return [sys.executable, "-m", "benchmarks.gpu.first_day"]


def end_of(process: subprocess.Popen[bytes]) -> str:
    """How a process ended, in words."""
    code = process.returncode
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}."
    return f"the process ended with code {code}."


def last_words(log: IO[bytes]) -> str:
    """The end of what a process printed, in one line."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LONGEST))
    said = " ".join(log.read().decode("utf-8", "replace").split())
    return f"It printed: {said}" if said else ""
