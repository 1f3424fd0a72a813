"""Options that several commands take, and what every command starts and ends with."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trinity.harness.records.measurement import Measurement
    from trinity.harness.repro.repro import Reproduced
    from trinity.harness.store.stages import StageStore
    from trinity.harness.terminal.grid import Grid
    from trinity.harness.terminal.progress import Reporter


def from_home(path: Path | None) -> Path | None:
    """A shell expands `~` where a word begins, and not in `--out=~/x`."""
    try:
        return path.expanduser() if path else path
    except RuntimeError as error:
        msg = f"{path}: there is no such home folder."
        raise typer.BadParameter(msg) from error


Json = Annotated[bool, typer.Option("--json", help="Print the result, alone, as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Add the traceback to an error.")]
Out = Annotated[Path, typer.Option("--out", callback=from_home, help="Folder for what is made.")]
Results = Annotated[
    Path | None,
    typer.Option(
        "--out",
        callback=from_home,
        help="Folder for what is made: results, of `smoke` smoke-results.",
    ),
]
RecordsIn = Annotated[
    Path,
    typer.Option("--results", callback=from_home, help="Folder that holds the records."),
]
Only = Annotated[
    str | None, typer.Option(metavar="<glob>", help="Recipes whose name matches, e.g. '*2of4'.")
]
Page = Annotated[Path, typer.Option("--out", callback=from_home, help="The HTML file to write.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="<str>", help="Override one field: key.path=value. May be repeated."
    ),
]
Target = Annotated[
    str, typer.Option(help="llvm-cpu, vulkan, cuda, rocm (gfx90a) or rocm-gfx942, ...")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute every stage again.")]
EngineName = Annotated[str, typer.Option("--engine", help="torch or iree.")]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        metavar="<str>",
        help="Accuracy suite for models; records need none. May be repeated.",
    ),
]
DenseModel = Annotated[
    str | None,
    typer.Option(
        "--dense",
        help="The model before compression, for suites that compare with it, of a checkpoint "
        "that does not know it: its weights were compressed elsewhere.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model of the Hugging Face hub.")
]
Limit = Annotated[int | None, typer.Option(help="Examples of each task.")]
Windows = Annotated[int | None, typer.Option(help="Windows of a text.")]
Seqlen = Annotated[int | None, typer.Option(help="Tokens of a window.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Of each part of a run; as many parts run at once as threads fit the processors. "
        "Unless told, a part has all of them.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Ray cluster that does it: auto, or HOST:PORT."),
]
Slurm = Annotated[
    str | None,
    typer.Option(
        metavar="OPTIONS",
        help="Jobs of SLURM that do it, e.g. timeout_min=240,partition=NAME,account=NAME.",
    ),
]


def set_threads(threads: int | None) -> None:
    """Of this process and of those that it starts; before torch is loaded, which reads it once."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def start(quiet: bool) -> "Reporter":
    """The reporter of a command; log records become lines of it."""
    from trinity.harness.terminal.progress import LogLines, Reporter

    reporter = Reporter(quiet=quiet)
    level = logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, handlers=[LogLines(reporter)], force=True)
    return reporter


def store(fresh: bool = False) -> "StageStore":
    """The stage store of this machine's user, no larger than it may be."""
    from trinity.harness.store import remote
    from trinity.harness.store.contents import keep_bounded
    from trinity.harness.store.stages import StageStore, default_root

    found = StageStore(default_root(), fresh=fresh, behind=remote.of_environment())
    keep_bounded(found)
    return found


def show(data: Any, as_json: bool, text: str) -> None:
    """A command's result on stdout."""
    from trinity.harness.terminal import printing

    if as_json:
        printing.data(data)
    else:
        printing.text(text)


def show_grid(data: Any, as_json: bool, found: "Grid") -> None:
    """A command's result on stdout, as a table."""
    from trinity.harness.terminal import printing

    if as_json:
        printing.data(data)
    else:
        printing.grid(found)


def show_grids(data: Any, as_json: bool, found: "Sequence[Grid]") -> None:
    """A command's result on stdout, as tables."""
    from trinity.harness.terminal import printing

    if as_json:
        printing.data(data)
    else:
        printing.grids(found)


def show_measurements(found: "list[Measurement]", as_json: bool) -> None:
    """Measurements on stdout: a table for each kind of them."""
    from trinity.harness.report.measured import grids
    from trinity.harness.terminal import printing

    if as_json:
        printing.data([m.model_dump(mode="json") for m in found])
    else:
        printing.grids(grids(found))


def show_tables(data: Any, results: "Sequence[Reproduced]", as_json: bool) -> None:
    """Tables of papers on stdout, and where their files are."""
    from trinity.harness.terminal import printing

    if as_json:
        printing.data(data)
        return
    printing.grids([result.compact for result in results])
    printing.text("")
    for result in results:
        for path in result.files:
            printing.text(f"written: {path}")
