"""What a figure is before it is drawn: rows of plain data, and the choices that select among them.

The report draws the rows in a browser, `trinity plot` on paper, and both say the same words.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Row = dict[str, str | float | bool | None]


@dataclass(frozen=True)
class Option:
    """One value of a choice.  words: what it makes the figure's axes say, by their names"""

    value: str
    label: str
    words: Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """Which rows are drawn: those whose `field` has the value of the chosen option."""

    field: str
    label: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Figure:
    """A figure.

    says: how it is read, in one paragraph   lacking: why there is nothing to draw, and what records
    it; empty where there is
    """

    name: str
    title: str
    says: str
    rows: tuple[Row, ...] = ()
    choices: tuple[Choice, ...] = ()
    lacking: str = ""

    def chosen(self, *values: str) -> list[Row]:
        """The rows of these options, the first of each choice that none is given of."""
        wanted = {
            choice.field: values[i] if i < len(values) else choice.options[0].value
            for i, choice in enumerate(self.choices)
        }
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]


def significant(value: float, digits: int = 5) -> float:
    """A number with no more digits than a figure shows."""
    return float(f"{value:.{digits}g}")
