"""A paper's table as people read it: one number and one verdict a cell.

Intervals, tests and the rest are in the Markdown file's second table and in the CSV.
"""

from trinity.harness.recipes.paper import recipe_name
from trinity.harness.records.facts import AVERAGE, Speedup
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report.judged import FIDELITY, Judged, heading
from trinity.harness.report.numbers import NOTHING, number_text, significant, without_value
from trinity.harness.statistics.comparison import NO_DIFFERENCE, SPEEDUP
from trinity.harness.terminal.grid import Column, Grid

NOT_SIGNIFICANT = "n.s."  # how a cell says that no difference was shown
LEGEND = (
    "Against the dense row: `worse` and `better` are significant, `n.s.` means that no difference "
    "was shown."
)
TIMED = (
    "Decode of one sequence, by the path beside it. Speeds against dense are IREE's, against the "
    "dense model in IREE."
)
TORCH, IREE = "torch", "iree"
ROW = "Row"  # as `--rows` takes it; it says method, quantization and pattern where these give way
# What a narrow terminal leaves out, the last first; see `Column.spare`.
IREE_SPEED, METHOD, QUANTIZATION, PATTERN = 1, 2, 3, 4
PAPER, TORCH_SPEED, MODULE, TASK, CLOSENESS = 5, 6, 7, 8, 9


def grid(judged: Judged, indices: list[int], title: str = "") -> Grid:
    """The cells of a table.  indices: which, in order"""
    columns = [
        Column(ROW),
        Column("Method", spare=METHOD),
        Column("Quantization", spare=QUANTIZATION),
        Column("Pattern", spare=PATTERN),
        Column("Bits/weight", right=True),
    ]
    rows = [
        [
            recipe_name(judged.cells[index].row, judged.cells[index].pattern),
            judged.cells[index].row.label,
            judged.cells[index].row.quantization,
            judged.cells[index].pattern or "dense",
            f"{judged.cells[index].record.checkpoint.bits_per_weight:.2f}",
        ]
        for index in indices
    ]
    for column, cells in [*_accuracies(judged, indices), *_speeds(judged, indices)]:
        columns.append(column)
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    timed = any(column.spare == IREE_SPEED for column in columns)
    notes = [LEGEND] * bool(judged.outcomes) + [TIMED] * timed
    return Grid(title, columns, rows, notes)


def value(m: Measurement | None) -> str:
    """'176.5', '54.0'; '–' for what was not measured, 'exp(812.3)' for what is no number."""
    if m is None:
        return NOTHING
    return without_value(m) if m.value is None else number_text(m)


def _accuracies(judged: Judged, indices: list[int]) -> list[tuple[Column, list[str]]]:
    """Each accuracy, and beside it the paper's number where the paper has any."""
    averaged = any(name == AVERAGE for name, *_ in judged.columns)
    found = []
    for key, example in judged.columns.items():
        spare = 0
        if example.metric in FIDELITY:
            spare = CLOSENESS
        elif averaged and example.metric == "acc" and example.name != AVERAGE:
            spare = TASK
        those = [judged.cells[index].record.find(*key) for index in indices]
        cells = [_judged(judged, index, m) for index, m in zip(indices, those, strict=True)]
        found.append((Column(heading(example), True, spare), cells))
        papers = [_published(judged, index, m) for index, m in zip(indices, those, strict=True)]
        found += _filled([(Column(f"{heading(example)} in the paper", True, PAPER), papers)])
    if not averaged:
        papers = [_published(judged, index, None) for index in indices]
        found += _filled([(Column("mean % in the paper", True, PAPER), papers)])
    return found


def _filled(found: list[tuple[Column, list[str]]]) -> list[tuple[Column, list[str]]]:
    """Without the columns that no row has anything in."""
    return [(column, cells) for column, cells in found if any(cell != NOTHING for cell in cells)]


def _judged(judged: Judged, index: int, m: Measurement | None) -> str:
    text = value(m)
    outcome = judged.against_dense(index, m) if m else None
    if outcome is None or m is None:
        return text
    if m.value is None and outcome.verdict == "not comparable":
        return text  # it says why by itself
    verdict = NOT_SIGNIFICANT if outcome.verdict == NO_DIFFERENCE else outcome.verdict
    return f"{text} {verdict}"


def _published(judged: Judged, index: int, m: Measurement | None) -> str:
    published = judged.against_paper(index, m)
    if published.value is None:
        return NOTHING
    word = published.reason or published.word
    return f"{published.value:g} {word if published.word == 'not comparable' else published.word}"


def _speeds(judged: Judged, indices: list[int]) -> list[tuple[Column, list[str]]]:
    """Decode in both engines with the path, IREE's against dense, and what the module reads."""
    records = [judged.cells[index].record for index in indices]
    modules = [
        f"{record.lowering.bits_per_weight:.2f}" if record.lowering else NOTHING
        for record in records
    ]
    found = [
        (Column("Decode torch, tok/s", True, TORCH_SPEED), [_speed(r, TORCH) for r in records]),
        (Column("Decode IREE, tok/s", True, IREE_SPEED), [_speed(r, IREE) for r in records]),
        (Column("Against dense", True), [_speedup(r) for r in records]),
        (Column("Module bits/weight", True, MODULE), modules),
    ]
    return _filled(found)


def _speed(record: Record, engine: str) -> str:
    m = record.find("decode", "tokens_per_s", engine)
    return NOTHING if m is None or m.value is None else f"{significant(m.value)} {m.path}"


def _speedup(record: Record) -> str:
    m = record.find("decode", SPEEDUP, IREE)
    if m is None or m.value is None:
        return NOTHING
    verdict = Speedup.of(m).verdict or ""
    return f"{significant(m.value, 3)}x {NOT_SIGNIFICANT if verdict == NO_DIFFERENCE else verdict}"
