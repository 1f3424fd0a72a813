"""The runs of a gate: each recipe in a process of its own, for no longer than the policy says.

A run that crashes, is killed or takes too long is broken, and takes no other one with it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trinity.harness.records import record
from trinity.harness.terminal.progress import Reporter
from trinity.harness.tracking import references
from trinity.harness.tracking.judging import Broken, Ran
from trinity.harness.tracking.references import Kept
from trinity.methods.errors import ConfigError, RecordError

_TAIL = 5  # lines of a broken run that are repeated


@dataclass(frozen=True)
class Runner:
    """How recipes are run.

    out: folder of the records   minutes: that one may take
    python, folder: which Python, and where it stands; of a baseline another commit's
    """

    out: Path
    minutes: float
    quiet: bool
    reporter: Reporter
    python: str = ""
    folder: Path | None = None

    def run_all(self, recipes: Sequence[tuple[str, Path]]) -> list[Ran | Broken]:
        """Run recipes one after the other.  recipes: name and file"""
        found = []
        for number, (name, path) in enumerate(recipes, start=1):
            self.reporter.say(f"recipe {number} of {len(recipes)}: {name}")
            found.append(self.run(name, path))
        return found

    def run(self, name: str, path: Path) -> Ran | Broken:
        """Run one recipe.  What it says of its progress is passed on as it comes."""
        # Another commit's project must not be that of a PYTHONPATH that names ours.
        start = [self.python, "-I"] if self.python else [sys.executable, "-P"]
        command = [*start, "-m", "trinity.harness.cli", "run"]
        command += [str(path.resolve()), "--out", str(self.out.resolve())]
        command += ["--json", *["--quiet"] * self.quiet]
        tail: deque[str] = deque(maxlen=_TAIL)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as answer:
            child = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=answer,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="backslashreplace",
                start_new_session=True,  # so that all that it starts is ended with it
            )
            late = self._wait(child, tail)
            answer.seek(0)
            said = answer.read()
        if late:
            why = f"took longer than the {self.minutes:g} minutes that the policy allows"
            return Broken(name, why)
        if child.returncode:
            code = child.returncode
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return Broken(name, f"{ended}: {' '.join(tail) or 'it said nothing'}")
        return _recorded(name, said, self.out)

    def _wait(self, child: "subprocess.Popen[str]", tail: deque[str]) -> bool:
        """Until it ends, or has to be ended; whether it had to be.  tail: its last lines"""
        assert child.stderr is not None
        late = threading.Event()
        clock = threading.Timer(60 * self.minutes, _end, [child, late])
        clock.start()
        try:
            for line in child.stderr:
                tail.append(line.strip())
                if not self.quiet:
                    self.reporter.write(line.rstrip("\n"))
            child.wait()
        finally:
            clock.cancel()
            _end(child)
            child.stderr.close()
        return late.is_set()


def of_folder(place: str, names: Sequence[str]) -> list[Ran | Broken]:
    """The newest record of each recipe in a folder, or that of a file; broken where there is none.

    names: of the policy's recipes
    """
    if Path(place).is_file():
        found = record.read(Path(place))
        return [Ran(str(found.recipe["name"]), Kept(place, found))]
    if not Path(place).is_dir():
        msg = f"gate {place}: is neither a record nor a folder of records."
        raise ConfigError(msg)
    newest = {str(kept.record.recipe["name"]): kept for kept in references.read_folder(Path(place))}
    return [
        Ran(name, newest[name]) if name in newest else Broken(name, f"{place} has no record of it")
        for name in names
    ]


def _recorded(name: str, said: str, out: Path) -> Ran | Broken:
    try:
        place = Path(json.loads(said)["record"])
        below = out / place.relative_to(out.resolve())
        return Ran(name, Kept(str(below), record.read(place)))
    except (ValueError, KeyError, TypeError, RecordError) as error:
        return Broken(name, f"left no record that can be read ({error})")


def _end(child: "subprocess.Popen[str]", late: threading.Event | None = None) -> None:
    """Kill a run that has not ended, with all that it started."""
    if child.poll() is not None:
        return
    if late is not None:
        late.set()
    with suppress(ProcessLookupError):  # it ended just now
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
