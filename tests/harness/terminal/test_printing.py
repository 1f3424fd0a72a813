"""Tables fit the width they are printed for, and lose no digit to it."""

from itertools import pairwise

import pytest

from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.terminal.printing import laid_out

GRID = Grid(
    "",
    [
        Column("Method"),
        Column("Decode IREE, tok/s", right=True),
        Column("Against dense", right=True),
        Column("Task", right=True, spare=2),
        Column("Paper", right=True, spare=1),
    ],
    [
        ["SLiM-LoRA (the paper's algorithm)", "198.9 kernel", "3.77x faster", "50.7 n.s.", "51.15"],
        ["Dense", "54.00 kernel", "0.994x n.s.", "54.0", "56.6"],
    ],
)


def test_a_pipe_gets_every_column_and_one_line_a_row() -> None:
    lines = laid_out(GRID, 10_000)
    assert len(lines) == 1 + len(GRID.rows)
    assert all(cell in line for line, row in zip(lines[1:], GRID.rows, strict=True) for cell in row)


@pytest.mark.parametrize("width", [50, 60, 80, 100, 160])
def test_a_table_fits_and_its_numbers_are_whole(width: int) -> None:
    lines = laid_out(GRID, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in GRID.rows:
        assert row[1] in text
        assert row[2] in text
        assert all(word in text for word in row[0].split())


def test_the_sparest_columns_give_way_first() -> None:
    shown = [
        {column.name for column in GRID.columns if column.name.split()[0] in laid_out(GRID, w)[0]}
        for w in range(160, 45, -5)
    ]
    assert shown[0] == {column.name for column in GRID.columns}
    for wider, narrower in pairwise(shown):
        assert narrower <= wider
    assert {"Task"} in [wider - narrower for wider, narrower in pairwise(shown)]
    assert "Paper" not in shown[-1]


def test_numbers_wider_than_the_terminal_are_not_cut() -> None:
    text = "\n".join(laid_out(GRID, 20))
    assert "198.9 kernel" in text
    assert "3.77x faster" in text
