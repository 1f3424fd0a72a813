"""Which figures are drawn to which files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trinity.harness.figures import layers
from trinity.harness.figures.every import figures
from trinity.harness.figures.figure import Figure, Option
from trinity.harness.figures.layers import METRICS, LayerGrid
from trinity.harness.figures.shown import Shown
from trinity.harness.plots import draw
from trinity.harness.store.writing import writing
from trinity.methods.errors import ConfigError, MachineError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

EXTRA = "pip install 'compression-trinity[plot]'"
LAYERS = "layers"
NAMES = (*draw.DRAWN, LAYERS)
FORMATS = ("pdf", "png")


@dataclass(frozen=True)
class Asked:
    """What is to be drawn.

    names: of figures, empty for all   by: words of the options to choose, such as 'piqa'
    pair: the runs whose layers are drawn, one or two; none for the first two
    """

    names: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()


def check(asked: Asked) -> None:
    """Before anything is read: whether such figures exist, and matplotlib is there."""
    for name in asked.names:
        if name not in NAMES:
            msg = f"plot {name}: there is no such figure.{nearest(name, list(NAMES))} Figures: "
            raise ConfigError(f"{msg}{', '.join(NAMES)}.")
    if len(asked.pair) > 2:
        msg = f"plot --run {' --run '.join(asked.pair)}: give one run, or two to be compared."
        raise ConfigError(msg)
    try:
        import matplotlib as mpl  # an optional extra, and slow to load
    except ImportError as error:
        msg = f"trinity plot needs the package matplotlib, which is missing. Run {EXTRA}."
        raise MachineError(msg) from error
    mpl.use("agg")  # files alone: no screen is asked for


def plot(runs: Sequence[Shown], asked: Asked, out: Path) -> tuple[list[Path], list[str]]:
    """Write every figure as PDF and PNG; the files, and why others could not be drawn."""
    import matplotlib as mpl  # as in `check`
    from matplotlib import pyplot

    files: list[Path] = []
    lacking: list[str] = []
    with mpl.rc_context(draw.STYLE), writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, drawing in _drawn(runs, asked, lacking):
            for ending in FORMATS:
                path = out / f"{name}.{ending}"
                # Without the hour, so that the same records give the same file.
                when = {"CreationDate": None} if ending == "pdf" else {"Software": None}
                drawing.savefig(path, metadata=when)
                files.append(path)
            pyplot.close(drawing)
    if asked.names and not files:
        raise ConfigError(" ".join(lacking))
    return files, lacking


def _drawn(
    runs: Sequence[Shown], asked: Asked, lacking: list[str]
) -> "Iterator[tuple[str, Drawing]]":
    wanted = asked.names or NAMES
    for name, figure in figures(runs).items():
        if name not in wanted:
            continue
        if figure.lacking:
            lacking.append(f"{figure.title}: {figure.lacking}")
            continue
        options = _options(figure, asked.by)
        words = {key: word for option in options for key, word in option.words.items()}
        rows = figure.chosen(*(option.value for option in options))
        yield name, draw.DRAWN[name](rows, words)
    if LAYERS in wanted:
        grids = layers.layer_grids(runs)
        if not grids:
            lacking.append(layers.LACKING)
            return
        first, second = _pair(grids, asked.pair)
        for metric in METRICS:
            yield f"{LAYERS}-{metric.replace('_', '-')}", draw.heat_maps(first, second, metric)


def _options(figure: Figure, by: Sequence[str]) -> list[Option]:
    """Of each choice the first option with one of the words that leaves rows, else the first."""
    found: list[Option] = []
    rows = list(figure.rows)
    for choice in figure.choices:
        left = [o for o in choice.options if any(row[choice.field] == o.value for row in rows)]
        named = [o for o in left if any(word.lower() in o.label.lower() for word in by)]
        chosen = (named or left)[0]
        rows = [row for row in rows if row[choice.field] == chosen.value]
        found.append(chosen)
    return found


def _pair(grids: Sequence[LayerGrid], names: Sequence[str]) -> tuple[LayerGrid, LayerGrid]:
    """The runs of these names, or the first two that can be compared."""
    by_name = {grid.run: grid for grid in grids}
    for name in names:
        if name not in by_name:
            msg = f"plot --run {name}: no such run has layers. Runs: {', '.join(by_name)}."
            raise ConfigError(msg)
    first = by_name[names[0]] if names else grids[0]
    alike = [grid for grid in grids if grid is not first and grid.shape == first.shape]
    if len(names) < 2:
        return first, (alike[0] if alike and not names else first)
    second = by_name[names[1]]
    if second.shape != first.shape:
        msg = f"plot --run {names[0]} --run {names[1]}: they have other layers. Choose two alike."
        raise ConfigError(msg)
    return first, second
