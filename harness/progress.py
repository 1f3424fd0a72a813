"""Progress on stderr: a bar on a terminal, plain timestamped lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Reporter:
    """Says what is being done and how far it is."""

    def __init__(self, *, quiet: bool = False) -> None:
        """quiet: say nothing."""
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> "Reporter":
        """Start drawing."""
        if not self._quiet and self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal clean."""
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._quiet:
            return
        if self._bars:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            sys.stderr.flush()

    def step(self, name: str, done: int, total: int) -> None:
        """Progress within a stage; without a terminal, a line at each fifth of it."""
        if self._quiet:
            return
        if self._bars:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(self._tasks[name], completed=done, total=total)
            if done == total:
                self._bars.remove_task(self._tasks.pop(name))
            return
        fifth = 5 * done // total
        if fifth > self._said.get(name, 0):
            self._said[name] = fifth if done < total else 0
            self.say(f"{name}: {done}/{total}")
