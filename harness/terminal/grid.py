"""A table as data: what is said in it, before it is printed or written."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table.

    right: aligned right and never broken over lines, as numbers are
    spare: where a terminal is too narrow, columns are left out, those with the most first; 0 never
    """

    name: str
    right: bool = False
    spare: int = 0


@dataclass(frozen=True)
class Grid:
    """A table.  rows: a cell for every column   notes: lines below it"""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def filled(self) -> "Grid":
        """Without the columns that no row has anything in."""
        kept = [i for i in range(len(self.columns)) if any(row[i] for row in self.rows)]
        return self._of(kept)

    def without(self, names: Sequence[str]) -> "Grid":
        """Without the columns of these names."""
        return self._of([i for i, column in enumerate(self.columns) if column.name not in names])

    def _of(self, kept: Sequence[int]) -> "Grid":
        columns = [self.columns[i] for i in kept]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Grid(self.title, columns, rows, self.notes)
