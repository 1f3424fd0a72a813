"""The cells of a table, and all that may be said of them against the dense row and the paper."""

from collections.abc import Mapping
from dataclasses import dataclass

from trinity.harness.recipes.paper import Profile, Row, Table
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report import verdicts
from trinity.harness.report.verdicts import Key, accuracy_measurements
from trinity.harness.statistics.comparison import Outcome

FIDELITY = {"kl": "KL", "top1_agreement": "same top token %", "flip_rate": "flipped %"}


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a table: which row and pattern, its record, and where that is kept."""

    row: Row
    pattern: str | None
    record: Record
    record_path: str


@dataclass(frozen=True, eq=False)
class Judged:
    """A table's cells with all that may be said of them."""

    table: Table
    profile: Profile
    cells: list[Cell]
    outcomes: Mapping[Key, Outcome]

    @property
    def columns(self) -> dict[tuple[str, str, str], Measurement]:
        """Every accuracy of any row, in order: rows may have been measured by other suites."""
        found: dict[tuple[str, str, str], Measurement] = {}
        for cell in self.cells:
            for m in accuracy_measurements(cell.record):
                found.setdefault((m.name, m.metric, m.engine), m)
        return found

    def against_dense(self, index: int, m: Measurement) -> Outcome | None:
        """A cell against the dense row's; None for the dense row itself."""
        return self.outcomes.get((index, m.name, m.metric, m.engine))

    def against_paper(self, index: int, m: Measurement | None) -> verdicts.Published:
        """A cell against the paper's number."""
        cell = self.cells[index]
        return verdicts.against_paper(
            m, self.table, cell.row, cell.pattern, self.profile, cell.record
        )


def heading(m: Measurement) -> str:
    """'wikitext2 ppl', 'piqa %', 'mean %', 'wikitext2 KL'."""
    if m.metric == "perplexity":
        return f"{m.name.removeprefix('perplexity-')} ppl"
    if m.metric in FIDELITY:
        return f"{m.name.removeprefix('fidelity-')} {FIDELITY[m.metric]}"
    return f"{'mean' if m.name == 'average' else m.name} %"


def row_name(cell: Cell) -> str:
    """'Wanda, Group AbsMax, 2:4'."""
    return f"{cell.row.label}, {cell.row.quantization}, {cell.pattern or 'dense'}"
