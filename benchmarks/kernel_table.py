"""The speed table of docs/diary/kernel-speed.md, from the records of `benchmarks/kernels.py`.

    python benchmarks/kernel_table.py results/notes/kernel-speed-*.json

Prints Markdown; a test compares it with the page.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ENGINES = {"torch-bfloat16": "torch's own bfloat16", "torch-int4": "torch's own int4 kernel"}
Record = Mapping[str, Any]


def main() -> None:
    """Print the table of the named records."""
    print(markdown([json.loads(Path(name).read_text("utf-8")) for name in sys.argv[1:]]), end="")


def markdown(records: Sequence[Record]) -> str:
    """A row a product, a column a number of rows M: times torch's float32, and at the least M what
    share of the floor is reached.
    """
    found: dict[tuple[str, str], dict[int, tuple[Record, Record]]] = {}
    for record in records:
        timed = {_key(m): m for m in record["measurements"] if m["metric"] == "seconds"}
        for m in record["measurements"]:
            if m["metric"] == "speedup":
                seconds = timed[_key(m)]
                shape, product = _labels(seconds)
                cells = found.setdefault((shape, product), {})
                cells[seconds["details"]["rows"]] = (seconds, m)
    counts = sorted({rows for cells in found.values() for rows in cells})
    least = counts[0]
    heads = ["shape", "product", "bytes", f"M = {least}", "share of the floor"]
    heads += [f"M = {rows}" for rows in counts[1:]]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|---:|{'---|' * (len(heads) - 3)}"]
    for (shape, product), cells in found.items():
        first = next(iter(cells.values()))[0]["details"]
        parts = [shape, product, f"{first['read_bytes'] / 1e6:.1f} MB", _speed(cells.get(least))]
        parts.append(f"{cells[least][0]['details']['floor_share']:.0%}" if least in cells else "")
        parts += [_speed(cells.get(rows)) for rows in counts[1:]]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines) + "\n"


def _key(m: Record) -> tuple[str, str]:
    return m["name"], m["engine"]


def _labels(seconds: Record) -> tuple[str, str]:
    """Shape, and what was multiplied on which engine."""
    details, engine = seconds["details"], seconds["engine"]
    shape = " x ".join(map(str, details["shape"]))
    return shape, ENGINES.get(engine, details["format"])


def _speed(cell: tuple[Record, Record] | None) -> str:
    if cell is None:
        return ""
    interval = cell[1]["interval"]
    return f"{cell[1]['value']:.2f}x [{interval['low']:.2f}, {interval['high']:.2f}]"


if __name__ == "__main__":
    main()
