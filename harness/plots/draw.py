"""How each figure is drawn on paper, in the width of a page; words and colours are the report's."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trinity.harness.figures.figure import Row
from trinity.harness.figures.layers import METRICS, LayerGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# Okabe and Ito's colours, which colour-blind people tell apart; shapes say the same.
PATTERNS = {
    "no mask": ("#30383f", "o"),
    "2:4": ("#0072b2", "s"),
    "4:8": ("#009e73", "^"),
    "50%": ("#d55e00", "D"),
    "60%": ("#b5578c", "P"),
}
PATHS = {"kernel": "#0072b2", "compiled": "#009e73", "reference": "#30383f"}
PARTS = ("#0072b2", "#009e73", "#d55e00", "#b5578c")
OTHER = ("#8a6d00", "X")
WIDTH, COLUMN = 6.3, 3.3  # inches: of a page's text, and of one of two columns
BAR = 0.16  # inches a run takes
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # letters stay letters
    "savefig.bbox": "tight",
    "figure.dpi": 200,
}
Words = dict[str, str]


def number(row: Row, key: str) -> float:
    """A number of a row that has one."""
    value = row[key]
    assert isinstance(value, (int, float))
    return float(value)


def tradeoff(rows: Sequence[Row], words: Words) -> "Drawing":
    """Points with intervals; the front joined and numbered."""
    drawing, axes = _new(WIDTH, 3.4)
    for pattern in dict.fromkeys(str(row["pattern"]) for row in rows):
        those = [row for row in rows if row["pattern"] == pattern]
        colour, shape = PATTERNS.get(pattern, OTHER)
        x, y = ([number(row, key) for row in those] for key in ("x", "y"))
        bars = [[abs(number(r, "y") - number(r, end)) for r in those] for end in ("low", "high")]
        across = None
        if "x_low" in those[0]:
            ends = ("x_low", "x_high")
            across = [[abs(number(r, "x") - number(r, end)) for r in those] for end in ends]
        axes.errorbar(
            x, y, bars, across, fmt=shape, color=colour, ms=4, lw=0, elinewidth=0.7, label=pattern
        )
    front = sorted((number(r, "x"), number(r, "y"), str(r["place"])) for r in rows if r["front"])
    axes.plot([x for x, *_ in front], [y for _, y, _ in front], "--", color="#777777", lw=0.8)
    for across_at, up_at, place in dict.fromkeys(front):
        axes.annotate(
            place,
            (across_at, up_at),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.set(xlabel=words.get("x", "Bits per weight"), ylabel=words["y"], yscale=words["scale"])
    if "x" not in words:
        _log_with_plain_numbers(axes)
    axes.legend(title="mask", frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    return drawing


def latency(rows: Sequence[Row], words: Words) -> "Drawing":
    """A line a run: repetitions as ticks, quartiles as a bar, the median as a dot."""
    medians = {str(r["run"]): number(r, "median") for r in rows if "median" in r}
    names = sorted(medians, key=medians.__getitem__, reverse=True)
    drawing, axes = _new(WIDTH, 0.6 + BAR * len(names))
    for row in rows:
        place, colour = names.index(str(row["run"])), PATHS[str(row["path"])]
        axes.plot([number(row, "ms")], [place], "|", color=colour, ms=5, alpha=0.6)
        if "median" in row:
            axes.hlines(place, number(row, "low"), number(row, "high"), color=colour, lw=2)
            axes.plot([number(row, "median")], [place], "o", color=colour, ms=3)
    _named_lines(axes, names)
    axes.set(xlabel=words["x"], xlim=(0, None))
    return drawing


def roofline(rows: Sequence[Row], words: Words) -> "Drawing":
    """The two ceilings, and each run under them."""
    drawing, axes = _new(WIDTH, 3.4)
    ceiling = [row for row in rows if row["kind"] == "ceiling"]
    axes.plot(*([number(row, key) for row in ceiling] for key in "xy"), color="black", lw=1)
    points = [row for row in rows if row["kind"] == "point"]
    shapes = dict(zip(dict.fromkeys(str(r["what"]) for r in points), "osD^vP*X" * 9, strict=False))
    for key in dict.fromkeys((str(row["path"]), str(row["what"])) for row in points):
        those = [row for row in points if (row["path"], row["what"]) == key]
        axes.plot(
            [number(row, "x") for row in those],
            [number(row, "y") for row in those],
            shapes[key[1]],
            color=PATHS[key[0]],
            ms=4,
            label=f"{key[1]}, {key[0]}",
        )
    axes.set(xlabel="Operations per byte of weights", ylabel="GFLOP/s", xscale="log", yscale="log")
    axes.legend(frameon=False, loc="lower right")
    return drawing


def memory(rows: Sequence[Row], words: Words) -> "Drawing":
    """Stacked bars, the largest on top."""
    totals: dict[str, float] = {}
    for row in rows:
        totals[str(row["run"])] = totals.get(str(row["run"]), 0.0) + number(row, "MiB")
    names = sorted(totals, key=totals.__getitem__)
    parts = sorted({(number(row, "order"), str(row["component"])) for row in rows})
    drawing, axes = _new(WIDTH, 0.6 + BAR * len(names))
    left = dict.fromkeys(names, 0.0)
    for (_, part), colour in zip(parts, PARTS * len(parts), strict=False):
        size = {str(r["run"]): number(r, "MiB") for r in rows if r["component"] == part}
        widths = [size.get(name, 0.0) for name in names]
        axes.barh(range(len(names)), widths, 0.8, list(left.values()), color=colour, label=part)
        left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
    _named_lines(axes, names)
    axes.set(xlabel=words["x"])
    axes.legend(frameon=False, loc="lower right")
    return drawing


def seeds(rows: Sequence[Row], words: Words) -> "Drawing":
    """Every seed's value, and mean and deviation."""
    means = {str(row["run"]): number(row, "mean") for row in rows}
    names = sorted(means, key=means.__getitem__, reverse=True)
    drawing, axes = _new(WIDTH, 0.6 + BAR * len(names))
    for row in rows:
        place = names.index(str(row["run"]))
        axes.hlines(place, number(row, "low"), number(row, "high"), color="#888888", lw=1)
        axes.plot([number(row, "value")], [place], "o", color=PATHS["kernel"], ms=3)
    _named_lines(axes, names)
    axes.set(xlabel=words["x"])
    return drawing


def history(rows: Sequence[Row], words: Words) -> "Drawing":
    """The series, its levels, and a mark at each step."""
    drawing, axes = _new(COLUMN, 2.4)
    x, y = range(len(rows)), [number(row, "value") for row in rows]
    bars = [[abs(v - number(r, end)) for v, r in zip(y, rows, strict=True)] for end in LOW_HIGH]
    axes.errorbar(x, y, bars, fmt="o-", color=PATHS["kernel"], ms=3, lw=0.9, elinewidth=0.6)
    if "level" in rows[0]:
        levels = [number(row, "level") for row in rows]
        axes.step(x, levels, where="mid", color="#d55e00", lw=1)
        marks = [i for i, row in enumerate(rows) if "step" in row]
        axes.plot(marks, [levels[i] for i in marks], "v", color="#d55e00", ms=6)
    labels = [str(row["when"]) for row in rows]
    axes.set_xticks(x, labels, rotation=35, ha="right")
    axes.set(ylabel=words["y"])
    return drawing


def heat_maps(first: LayerGrid, second: LayerGrid, metric: str) -> "Drawing":
    """Two runs and their difference, or one run alone."""
    from matplotlib import pyplot  # an optional extra, and slow to load

    grids = [first.values[metric], second.values[metric]]
    known = [x for grid in grids for line in grid for x in line if x is not None] or [0.0]
    between = [
        [None if a is None or b is None else b - a for a, b in zip(*lines, strict=True)]
        for lines in zip(*grids, strict=True)
    ]
    most = max((abs(x) for line in between for x in line if x is not None), default=1.0) or 1.0
    panels: list[tuple[str, Any, dict[str, Any]]] = [
        (first.run, grids[0], {"cmap": "viridis", "vmin": min(known), "vmax": max(known)})
    ]
    if second is not first:
        panels.append((second.run, grids[1], panels[0][2]))
        ends = {"cmap": "PuOr_r", "vmin": -most, "vmax": most}
        panels.append(("second minus first", between, ends))
    size = (WIDTH, 0.75 + 0.22 * len(first.linears) + 0.4)
    drawing, row = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axes, (title, values, look) in zip(row[0], panels, strict=True):
        cells = [[float("nan") if x is None else x for x in line] for line in values]
        image = axes.imshow(cells, aspect="auto", interpolation="nearest", **look)
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="block")
        axes.grid(visible=False)
        label = METRICS[metric] if values is not between else "difference"
        bar = drawing.colorbar(image, ax=axes, orientation="horizontal", pad=0.28, aspect=28)
        bar.set_label(label, fontsize=7)
    names = [linear.rpartition(".")[2] for linear in first.linears]
    row[0][0].set_yticks(range(len(names)), names)
    return drawing


LOW_HIGH = ("low", "high")
DRAWN: dict[str, Callable[[Sequence[Row], Words], "Drawing"]] = {
    "bits": tradeoff,
    "speed": tradeoff,
    "latency": latency,
    "roofline": roofline,
    "memory": memory,
    "seeds": seeds,
    "history": history,
}


def _new(width: float, height: float) -> "tuple[Drawing, Axes]":
    from matplotlib import pyplot  # as in `heat_maps`

    return pyplot.subplots(figsize=(width, height))  # type: ignore[no-any-return]  # matplotlib is Any to mypy


def _named_lines(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(visible=False, axis="y")


def _log_with_plain_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter  # as in `heat_maps`

    axes.set_xscale("log")
    axes.set_xticks([2, 3, 4, 6, 8, 12, 16, 32])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
