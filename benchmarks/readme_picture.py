"""The picture of the README: speed against perplexity of a table's rows, as SVG.

    python benchmarks/readme_picture.py > docs/pictures/slim-embedded.svg

Reads the committed table; a test compares the picture with it.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "results" / "tables" / "slim" / "table1-embedded-SmolLM2-135M-Instruct.csv"
# (method, quantization, pattern) of the table -> what the picture calls the row
ROWS = {
    ("Dense", "none", "dense"): "dense",
    ("SparseGPT", "Group OPTQ", "2:4"): "SparseGPT 2:4",
    ("Wanda", "Group AbsMax", "2:4"): "Wanda 2:4",
    ("Magnitude", "Group AbsMax", "2:4"): "magnitude 2:4",
    ("Naive-LoRA", "SLiM-Quant", "2:4"): "Naive-LoRA 2:4",
    ("SLiM-LoRA (the paper's algorithm)", "SLiM-Quant", "2:4"): "SLiM-LoRA 2:4",
    ("SLiM-LoRA^Q", "SLiM-Quant", "2:4"): "SLiM-LoRA^Q 2:4",
    ("SparseGPT", "OPTQ", "50%"): "SparseGPT 50%",
    ("Naive-LoRA", "SLiM-Quant", "50%"): "Naive-LoRA 50%",
    ("SLiM-LoRA (the paper's algorithm)", "SLiM-Quant", "50%"): "SLiM-LoRA 50%",
}
TO_THE_RIGHT = (  # where labels stand
    "dense",
    "SparseGPT 2:4",
    "SparseGPT 50%",
    "Wanda 2:4",
    "magnitude 2:4",
    "SLiM-LoRA^Q 2:4",
)
BELOW = ("SLiM-LoRA^Q 2:4", "Wanda 2:4")  # that would stand on another row's cross
WIDTH, HEIGHT = 860, 470
LEFT, RIGHT, TOP, BOTTOM = 86, 26, 52, 64  # margins around the axes
SPEEDS, PERPLEXITIES = (0.0, 5.0), (20.0, 6000.0)
STYLE = """
    .page { fill: #ffffff; } text { fill: #1b2430; } .soft { fill: #4a5562; }
    .grid { stroke: #dfe4ea; } .mark { stroke-width: 2; }
    .dense { stroke: #5b6672; fill: #5b6672; } .nm { stroke: #2f6fbd; fill: #2f6fbd; }
    .free { stroke: #b8651b; fill: #b8651b; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #11161d; } text { fill: #eef2f6; } .soft { fill: #b3bdc9; }
      .grid { stroke: #2b3541; }
      .dense { stroke: #a9b4c0; fill: #a9b4c0; } .nm { stroke: #6aa5ea; fill: #6aa5ea; }
      .free { stroke: #e39b56; fill: #e39b56; }
    }"""


@dataclass(frozen=True)
class Measured:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


Row = Mapping[str, Measured]


def main() -> None:
    """Print the picture of the committed table."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        print(svg(read(csv.DictReader(stream))))


def read(lines: Iterable[Mapping[str, str]]) -> dict[str, Row]:
    """Label -> perplexity and decoding speed of every row that the picture shows."""
    found: dict[str, dict[str, Measured]] = {label: {} for label in ROWS.values()}
    for line in lines:
        label = ROWS.get((line["method"], line["quantization"], line["pattern"]))
        what = (line["name"], line["metric"], line["engine"])
        axes = {
            ("perplexity-wikitext2", "perplexity", "torch"): "perplexity",
            ("decode", "speedup", "iree"): "speed",
        }
        if label and what in axes:
            number = Measured(*(float(line[key]) for key in ("value", "low", "high")))
            found[label][axes[what]] = number
    return found


def svg(rows: Mapping[str, Row]) -> str:
    """The picture: better is up and to the right."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
        "     font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', "
        'sans-serif" font-size="13">',
        "  <title>SLiM's Table 1 on SmolLM2-135M-Instruct: speed against perplexity</title>",
        f"  <style>{STYLE}\n  </style>",
        f'  <rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'  <text x="{LEFT}" y="30" font-size="15" font-weight="600">4-bit weights, pruned: what '
        "they cost, and how fast they are</text>",
        *_axes(),
    ]
    for label, row in rows.items():
        lines += _point(label, row["speed"], row["perplexity"])
    return "\n".join([*lines, "</svg>"])


def _x(speed: float) -> float:
    share = (speed - SPEEDS[0]) / (SPEEDS[1] - SPEEDS[0])
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _y(perplexity: float) -> float:
    """Logarithmic, and small on top."""
    low, high = map(math.log, PERPLEXITIES)
    share = (math.log(perplexity) - low) / (high - low)
    return round(TOP + share * (HEIGHT - TOP - BOTTOM), 1)


def _axes() -> Iterator[str]:
    right, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
    for perplexity in (30, 100, 300, 1000, 3000):
        y = _y(perplexity)
        at = f'x="{LEFT - 8}" y="{y + 4.5}"'
        yield f'  <path class="grid" d="M{LEFT} {y} H{right}"/>'
        yield f'  <text class="soft" {at} text-anchor="end">{perplexity:,}</text>'
    for speed in range(6):
        x = _x(speed)
        yield f'  <path class="grid" d="M{x} {TOP} V{foot}"/>'
        yield f'  <text class="soft" x="{x}" y="{foot + 20}" text-anchor="middle">{speed}x</text>'
    yield (
        f'  <text x="{(LEFT + right) / 2}" y="{HEIGHT - 16}" text-anchor="middle">decoding speed '
        "against the dense model, both compiled: faster to the right</text>"
    )
    y = (TOP + foot) / 2
    yield (
        f'  <text x="24" y="{y}" text-anchor="middle" transform="rotate(-90 24 {y})">WikiText-2 '
        "perplexity: better upwards</text>"
    )


def _point(label: str, speed: Measured, perplexity: Measured) -> Iterator[str]:
    """A cross: both intervals, with the value where they meet."""
    kind = "dense" if label == "dense" else "nm" if label.endswith("2:4") else "free"
    x, y = _x(speed.value), _y(perplexity.value)
    across = f"M{_x(speed.low)} {y} H{_x(speed.high)}"
    along = f"M{x} {_y(perplexity.low)} V{_y(perplexity.high)}"
    yield f'  <path class="mark {kind}" fill="none" d="{across} {along}"/>'
    yield f'  <circle class="{kind}" cx="{x}" cy="{y}" r="4.5"/>'
    # Labels of the fastest rows stand right of them, those of the others left.
    beside, anchor = (14, "start") if label in TO_THE_RIGHT else (-14, "end")
    up = -18 if label in BELOW else 7
    yield f'  <text x="{x + beside}" y="{round(y - up, 1)}" text-anchor="{anchor}">{label}</text>'


if __name__ == "__main__":
    main()
