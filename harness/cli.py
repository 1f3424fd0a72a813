"""The command line: which commands there are, and how every one of them ends."""

import io
import os
import shutil
import signal
import sys
import textwrap
from types import FrameType
from typing import Annotated, TextIO

import typer

from trinity.harness.commands import (
    artifact,
    audit,
    bench,
    bisect,
    cache,
    card,
    compare,
    compress,
    doctor,
    evaluate,
    export,
    fetch,
    gate,
    history,
    lower,
    methods,
    plan,
    plot,
    report,
    repro,
    run,
    sweep,
    table,
    train,
)
from trinity.harness.terminal.hush import hush_libraries

INTERRUPTED, TERMINATED = 130, 143  # 128 and the number of the signal, as shells have it
UNWRITABLE = 3  # of a machine that lacks something
CLOSED = "standard output is closed. Open it; `>/dev/null` is for what nobody reads."
TOOL = ("compression-trinity", "torch", "torch-mlir", "iree-base-compiler", "iree-base-runtime")

app = typer.Typer(
    name="trinity",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(repro.repro)
app.command()(run.run)
app.command()(sweep.sweep)
app.command()(fetch.fetch)
app.command()(train.train)
app.command()(compress.compress)
app.command()(lower.lower)
app.command()(export.export)
app.command("eval")(evaluate.evaluate)
app.command()(bench.bench)
app.command()(compare.compare)
app.command()(gate.gate)
app.command()(history.history)
app.command()(bisect.bisect)
app.command()(table.table)
app.command()(report.report)
app.command()(plan.plan)
app.command()(plot.plot)
app.command()(artifact.artifact)
app.command()(card.card)
app.command()(audit.audit)
app.command()(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.add_typer(methods.app, name="methods")


def _say_versions(asked: bool) -> None:
    if asked:
        # Imported here: it takes as long as the rest of `--help`.
        from importlib.metadata import PackageNotFoundError, version

        for package in TOOL:
            try:
                print(package, version(package))
            except PackageNotFoundError:
                print(package, "is not installed")
        raise typer.Exit


@app.callback()
def _root(
    versions: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_say_versions,
            is_eager=True,
            help="Show the versions of Trinity, torch, torch-mlir and IREE, and exit.",
        ),
    ] = False,
) -> None:
    """Compress language models, run them packed, and reproduce the papers' tables."""


class _Interrupt:
    """Ctrl-C, or a batch system's SIGTERM, remembered: what it interrupts may turn
    KeyboardInterrupt into an error of its own, as an import of C code does. One that comes when
    the command is over changes nothing: what it did is done, and so is its exit code.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # to end with
        self.over = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.over:
            self.code = 128 + number
            raise KeyboardInterrupt


def main() -> None:
    """Run the command line; every expected error is one paragraph and an exit code.

    The process is its own: the signals it takes stay taken until the process ends.
    """
    hush_libraries()
    if sys.stdout is None:  # a file opened later would take its place, and get what is printed
        print(f"trinity: {CLOSED}", file=sys.stderr)
        raise SystemExit(UNWRITABLE)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal can write a dash; stderr does this without being told.
        sys.stdout.reconfigure(errors="backslashreplace")
    interrupt, stdout = _Interrupt(), sys.stdout
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        code = _run(interrupt)
        interrupt.over = True
    except KeyboardInterrupt:  # between the command's end and this line
        code = _interrupted(interrupt)
    if sys.stdout is not stdout:  # typer puts a wrapper there when nobody reads any more
        sys.stdout, code = stdout, 0  # `| head` has what it wanted
    raise SystemExit(_flushed(stdout, code))


def _flushed(stdout: TextIO, code: int | str | None) -> int | str | None:
    """The exit code once all that was printed is written, or cannot be."""
    try:
        stdout.flush()
    except OSError as error:
        # Python flushes once more when it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code
        if not code:  # of a command that failed, the reason is said
            from trinity.harness.terminal.machine_errors import not_printed  # as in `_run`

            print(_paragraph(f"trinity: {not_printed(error)}"), file=sys.stderr)
        return code or UNWRITABLE
    return code


def _run(interrupt: _Interrupt) -> int | str | None:
    """The exit code of the command that sys.argv names."""
    try:
        app(prog_name="trinity")  # also under `python -m`
    except SystemExit as end:
        # typer turns an interrupt into this code by itself.
        by_signal = interrupt.code is not None or end.code == INTERRUPTED
        return _interrupted(interrupt) if by_signal else end.code
    except (Exception, KeyboardInterrupt) as error:
        # Imported here: a healthy `--help` never needs it.
        from trinity.harness.terminal.machine_errors import of_the_machine
        from trinity.methods.errors import TrinityError

        if interrupt.code is not None or isinstance(error, KeyboardInterrupt):
            return _interrupted(interrupt)
        expected = of_the_machine(error)
        if "--debug" in sys.argv or not isinstance(expected, TrinityError):
            raise
        print(_paragraph(f"trinity: {expected}"), file=sys.stderr)
        return expected.exit_code
    return 0


def _paragraph(text: str) -> str:
    """A message as it is, but on a terminal broken between words, not in them."""
    if not sys.stderr.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(text, columns, break_long_words=False, break_on_hyphens=False)


def _interrupted(interrupt: _Interrupt) -> int:
    how = "terminated" if interrupt.code == TERMINATED else "interrupted"
    print(
        f"trinity: {how}. Finished stages are kept: the same command goes on from there.",
        file=sys.stderr,
    )
    return interrupt.code or INTERRUPTED


if __name__ == "__main__":
    main()
