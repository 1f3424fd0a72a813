"""Progress on stderr: a bar on a terminal, plain timestamped lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Reporter:
    """Says what is being done and how far it is."""

    def __init__(self, *, quiet: bool = False) -> None:
        """quiet: say nothing."""
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._all_rows: TaskID | None = None
        self._said: dict[str, int] = {}

    def __enter__(self) -> "Reporter":
        """Start drawing."""
        console = Console(stderr=True)
        if not self._quiet and draws(console):
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                console=console,
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
            self._bars = None

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            self.write(text if self._bars else f"{time.strftime('%H:%M:%S')} {text}")

    def write(self, line: str) -> None:
        """A line that even a quiet command has, above the bars where they are."""
        if self._bars:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def rows(self, name: str, done: int, total: int, left_s: float | None) -> None:
        """One line for all of several rows: which one runs, and the time left where it is known."""
        left = "" if left_s is None else f", about {duration(left_s)} left"
        self.say(f"row {done + 1} of {total}: {name}{left}")
        self._show_all(f"rows{left}", done, total)

    def all_parts(self, done: int, total: int, left_s: float | None) -> None:
        """Of a sweep: how many parts are over, and the time left where it is known."""
        left = "" if left_s is None else f", about {duration(left_s)} left"
        self._show_all(f"parts{left}", done, total)

    def working(self, name: str, *, over: bool = False) -> None:
        """What is at work now, of several things; each a line with its time, on a terminal."""
        if self._bars and not over:
            self._tasks[name] = self._bars.add_task(name, total=None)
        elif self._bars and name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))

    def counter(self, name: str, total: int) -> Callable[[], None]:
        """To be called after each of `total` things of a stage; says the time left."""
        start, done = time.monotonic(), 0

        def one_more() -> None:
            nonlocal done
            done += 1
            if done <= total:
                left_s = (time.monotonic() - start) / done * (total - done)
                self.step(name, done, total, left_s)

        return one_more

    def _show_all(self, said: str, done: int, total: int) -> None:
        if self._bars:
            if self._all_rows is None:
                self._all_rows = self._bars.add_task(said, total=total)
            self._bars.update(self._all_rows, description=said, completed=done, total=total)

    def step(self, name: str, done: int, total: int, left_s: float | None = None) -> None:
        """Progress within a stage; without a terminal, a line at each fifth of it.

        left_s: seconds, where they are known
        """
        if self._quiet:
            return
        left = f", about {duration(left_s)} left" if left_s and done < total else ""
        if self._bars:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(
                self._tasks[name], description=f"{name}{left}", completed=done, total=total
            )
            if done == total:
                self._bars.remove_task(self._tasks.pop(name))
            return
        fifth = 5 * done // total
        if fifth > self._said.get(name, 0):
            self._said[name] = fifth if done < total else 0
            self.say(f"{name}: {done}/{total}{left}")


def duration(seconds: float) -> str:
    """In words, as exact as an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


class LogLines(logging.Handler):
    """Log records as lines of a reporter, so that none is drawn over by a bar."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """One line, or several with a traceback; a library's says whose it is."""
        ours = record.name.startswith("trinity.")
        whose = "" if ours else f" of {record.name.partition('.')[0]}"
        self._reporter.write(f"{record.levelname.lower()}{whose}: {self.format(record)}")


def draws(console: Console) -> bool:
    """Whether a console takes bars and colours: a terminal that is not asked to be plain."""
    plain = console.is_dumb_terminal or os.environ.get("NO_COLOR")
    return console.is_terminal and not plain
