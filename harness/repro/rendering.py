"""Tables rendered again from the records that are there, and a page of every published cell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trinity.harness.recipes import paper, recipe
from trinity.harness.records import record
from trinity.harness.records.record import Record
from trinity.harness.report.judged import Cell
from trinity.harness.repro import published_cells
from trinity.harness.repro.repro import (
    Chosen,
    Reproduced,
    Selection,
    choose,
    planned_rows,
    write_table,
)
from trinity.harness.store.writing import write_text, writing
from trinity.methods.errors import ConfigError

ALL = "all"  # in place of a paper's name
PAGE = "published"  # the page of published cells, below the results folder
Kept = Sequence[tuple[Path, Record]]


@dataclass(frozen=True, eq=False)
class Found:
    """A table of one model, and the cells that there are records of."""

    chosen: Chosen
    table: str
    model: str
    cells: list[Cell]


def render_tables(paper_name: str, profile_name: str, out: Path) -> list[Reproduced]:
    """Tables from the newest record of each row's own compression; ConfigError if there is none."""
    chosen = choose(paper_name, Selection(profile=profile_name))
    tables = list(_tables(chosen, _kept(out), out))
    if not tables:
        msg = (
            f"{out / 'v1'}: holds no record of paper '{paper_name}', profile '{profile_name}'. "
            f"Run `trinity repro {paper_name} --profile {profile_name}` first."
        )
        raise ConfigError(msg)
    return _written(tables, out)


def render_all(out: Path) -> tuple[list[Reproduced], list[Path]]:
    """Every table of every paper and profile that has records, and the page of published cells."""
    kept = _kept(out)
    tables = [
        found
        for name in paper.names()
        for profile in paper.load(name).profiles
        if profile != "smoke"  # its numbers mean nothing
        for found in _tables(choose(name, Selection(profile=profile)), kept, out)
    ]
    if not tables:
        msg = f"{out / 'v1'}: holds no record of any paper. Run `trinity repro PAPER` first."
        raise ConfigError(msg)
    cells = [
        line
        for found in tables
        for line in published_cells.of(
            found.chosen.definition, found.table, found.chosen.profile, found.cells
        )
    ]
    texts = {"md": published_cells.markdown(cells), "csv": published_cells.csv_text(cells)}
    paths = [out / f"{PAGE}.{ending}" for ending in texts]
    written = _written(tables, out)
    with writing(out):
        for path, text in zip(paths, texts.values(), strict=True):
            write_text(path, text)
    return written, paths


def _kept(out: Path) -> Kept:
    """Every record with its file, the oldest first."""
    kept = [(path, record.read(path)) for path in (out / "v1").rglob("*.json")]
    return sorted(kept, key=lambda pair: record.age(*pair))


def _tables(chosen: Chosen, kept: Kept, out: Path) -> Iterator[Found]:
    """The tables of a profile that have a row of their own."""
    for key, table in chosen.definition.tables.items():
        for model in chosen.profile.models:
            cells = _cells(chosen, table, model, kept, out)
            # Tables share dense rows: one alone says nothing of this table.
            if not all(cell.row.is_dense for cell in cells):
                yield Found(chosen, key, model, cells)


def _cells(chosen: Chosen, table: paper.Table, model: str, kept: Kept, out: Path) -> list[Cell]:
    newest = {one.recipe["name"]: (path, one) for path, one in kept if one.model.id == model}
    cells = []
    for row, pattern in planned_rows(table, ("*",)):
        planned = [
            paper.recipe(chosen.profile, data, model, table, row, pattern)
            for data in chosen.profile.data
        ]
        compress = [p.model_dump(mode="json")["compress"] for p in planned]
        # A row that has come to compress otherwise is another row, whatever its name.
        if (name := planned[0].name) in newest and _compress(newest[name][1]) in compress:
            path, one = newest[name]
            cells.append(Cell(row, pattern, one, str(path.relative_to(out))))
    return cells


def _written(tables: Sequence[Found], out: Path) -> list[Reproduced]:
    return [
        write_table(found.chosen, found.table, found.model, found.cells, (), out, "")
        for found in tables
    ]


def _compress(found: Record) -> dict[str, Any]:
    """A record's `compress`; what was no option yet when it was written has its default."""
    return {**recipe.CompressSpec().model_dump(mode="json"), **found.recipe["compress"]}
