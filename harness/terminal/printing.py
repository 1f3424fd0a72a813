"""What people read on stdout: tables that fit a terminal, the same as aligned text in a pipe."""

import json
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from rich.console import Console

from trinity.harness.terminal.grid import Grid
from trinity.harness.terminal.progress import draws

GAP = "  "
UNBROKEN = 10_000  # columns of a pipe


def text(lines: str) -> None:
    """Plain lines."""
    print(lines)


def data(found: Any) -> None:
    """A result for programs: JSON, alone on stdout."""
    print(as_text(found))


def as_text(found: Any) -> str:
    """Plain data as JSON."""
    return json.dumps(found, indent=1, sort_keys=True)


def grid(found: Grid) -> None:
    """A table, its notes below it; a column that is empty in every row is left out.

    On a terminal words are wrapped to its width and numbers are not, and spare columns give way;
    a pipe gets one line a row.
    """
    console = Console()
    width = console.width if draws(console) else UNBROKEN
    if found.title:
        print(textwrap.fill(found.title, width))
    head, *lines = laid_out(found.filled(), width) if found.rows else [""]
    if head and draws(console):
        console.print(head, style="bold", highlight=False, markup=False, soft_wrap=True)
    elif head:
        print(head)
    for line in lines:
        print(line)
    for note in found.notes:
        print(textwrap.fill(note, width))


def grids(found: Sequence[Grid]) -> None:
    """Tables with an empty line between two."""
    for number, one in enumerate(found):
        if number:
            print()
        grid(one)


def laid_out(found: Grid, width: int) -> list[str]:
    """A table as lines, the headings first; wider than `width` only if its numbers alone are."""
    while found.columns and _total(_least(found, lines=2)) > width:
        spare = max(found.columns, key=lambda column: column.spare)
        if not spare.spare:
            break
        found = found.without([spare.name])
    widths = _widths(found, width)
    lines = []
    for cells in ([column.name for column in found.columns], *found.rows):
        wrapped = [
            textwrap.wrap(cell, size) or [""] for cell, size in zip(cells, widths, strict=True)
        ]
        for parts in zip_longest(*wrapped, fillvalue=""):
            lines.append(_line(found, parts, widths))
    return lines


def _line(found: Grid, parts: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(
        part.rjust(size) if column.right else part.ljust(size)
        for column, part, size in zip(found.columns, parts, widths, strict=True)
    ).rstrip()


def _widths(found: Grid, width: int) -> list[int]:
    """Of each column: what it takes, or where that is too much what is left for its words."""
    full, least = _least(found, lines=1), _least(found, lines=UNBROKEN)
    widths = list(full)
    while _total(widths) > width:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        if widths[widest] <= least[widest]:
            break  # numbers and single words are never broken
        widths[widest] -= 1
    return widths


def _least(found: Grid, lines: int) -> list[int]:
    """What each column takes with its words on so many lines; numbers stay on one."""
    sizes = []
    for index, column in enumerate(found.columns):
        cells = [row[index] for row in found.rows]
        numbers = max(map(len, cells), default=1) if column.right else 1
        texts = [column.name, *([] if column.right else cells)]  # only these may be broken
        longest = max(len(word) for text in texts for word in text.split())
        sizes.append(max(numbers, longest, -(-max(map(len, texts)) // lines)))
    return sizes


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def facts(found: Sequence[tuple[str, str, str]]) -> None:
    """Names and values; what is lacking is marked, with its remedy below.

    found: (name, value, remedy), the remedy empty where nothing lacks
    """
    width = max(len(name) for name, *_ in found)
    console = Console()
    columns = console.width if console.is_terminal else UNBROKEN
    indent = " " * (width + 6)
    for name, value, remedy in found:
        first = f"  {'!' if remedy else ' '} {name:<{width}}  "
        lines = [(first, value), *([(f"{indent}-> ", remedy)] if remedy else [])]
        for start, words in lines:
            print(
                textwrap.fill(
                    words,
                    columns,
                    initial_indent=start,
                    subsequent_indent=" " * len(start),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
