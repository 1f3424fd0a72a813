"""Regenerate a paper's tables: one recipe a row, one record a recipe, tables rendered from the
records.

A row that cannot be run stands in its table with the reason, and the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from trinity.harness.accuracy import suites
from trinity.harness.hub.data_sets import hub_is_off
from trinity.harness.recipes import paper
from trinity.harness.recipes.paper import Data, Paper, Profile, Row, Table
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records import record
from trinity.harness.report import failed, tables
from trinity.harness.report.failed import Failed
from trinity.harness.report.judged import Cell
from trinity.harness.repro import availability
from trinity.harness.repro.rows import Lost, Planned, Rows
from trinity.harness.store.stages import StageStore
from trinity.harness.store.writing import check_writable, write_text, writing
from trinity.harness.terminal.grid import Grid
from trinity.harness.terminal.progress import Reporter
from trinity.harness.texts import corpora
from trinity.methods.errors import ConfigError, TrinityError

if TYPE_CHECKING:
    from trinity.harness.repro import cost

PART = "-part"  # ending of a table of some rows, which must not take the place of the whole one
NO_TABLE = Grid("", (), ())
Beforehand = Callable[[list[Recipe]], Lost]


@dataclass(frozen=True)
class Reproduced:
    """A rendered table and its files.  failed: its rows that were not run

    compact: what is printed of it
    """

    model: str
    markdown: str
    files: tuple[Path, ...]
    failed: tuple[Failed, ...] = ()
    compact: Grid = NO_TABLE


@dataclass(frozen=True)
class Selection:
    """What of a paper is asked for; None leaves it to the profile, or the profile to the machine.

    rows: a glob over row names   models: a glob over the profile's models
    """

    table: str | None = None
    profile: str | None = None
    rows: str | None = None
    models: str | None = None


@dataclass(frozen=True)
class Chosen:
    """What of a paper will be run.  rows: of each table   part: ending of the files' names"""

    definition: Paper
    profile_name: str
    profile: Profile
    rows: dict[str, list[tuple[Row, str | None]]]
    models: tuple[str, ...]
    part: str

    def recipes(self, table: str, model: str, source: Data) -> list[Planned]:
        """The runs of one table on one model."""
        found = self.definition.tables[table]
        return [
            (row, pattern, paper.recipe(self.profile, source, model, found, row, pattern))
            for row, pattern in self.rows[table]
        ]


def default_out(profile_name: str | None) -> Path:
    """Where tables and records go unless told otherwise.

    Those that only show that every part runs never lie among results.
    """
    return Path("smoke-results" if profile_name == "smoke" else "results")


def choose(name: str, asked: Selection) -> Chosen:
    """A paper's tables, rows and models; ConfigError for what there is not."""
    definition = paper.load(name)
    if asked.table:
        paper.pick(definition, "table", asked.table, definition.tables)
    profile_name = asked.profile or availability.default_profile(definition)
    profile: Profile = paper.pick(definition, "profile", profile_name, definition.profiles)
    wanted = (asked.table,) if asked.table else profile.tables or tuple(definition.tables)
    rows = {
        key: _rows_of(paper.pick(definition, "table", key, definition.tables), profile, asked)
        for key in wanted
    }
    models = tuple(m for m in profile.models if fnmatchcase(m, asked.models or "*"))
    if not models:
        msg = (
            f"--model '{asked.models}' matches no model of profile '{profile_name}'. Models: "
            f"{', '.join(profile.models)}."
        )
        raise ConfigError(msg)
    part = "" if asked.rows is None else PART
    return Chosen(definition, profile_name, profile, rows, models, part)


def reproduce(
    name: str,
    asked: Selection,
    out: Path,
    store: StageStore,
    reporter: Reporter,
    beforehand: Beforehand | None = None,
) -> Iterator[Reproduced]:
    """Run every row of a paper's tables; each model's table as soon as it is finished.

    beforehand: does the rows of all tables, several at once; what is left then is in the store
    Stopped, by hand or by a mistake of ours, it gives the table of the finished rows first.  Where
    one model has no row that runs, in no table, the first row's error is raised.
    """
    chosen = choose(name, asked)
    check_writable(out / "tables" / chosen.definition.name)
    availability.check_machine(chosen.profile)
    refused = availability.refused(chosen.models, store, reporter)
    if len(refused) == len(chosen.models):
        raise next(iter(refused.values()))
    for model, error in refused.items():
        reporter.say(f"{model} is left out: {error}")
    source = first_at_hand(chosen.profile)
    left = _say_cost(chosen, source, refused, store, reporter)
    lost: Lost | None = None
    if beforehand is not None:
        models = [model for model in chosen.models if model not in refused]
        planned = [chosen.recipes(key, model, source) for key in chosen.rows for model in models]
        lost = beforehand([run for rows in planned for *_, run in rows])
    empty: list[tuple[str, str, Rows]] = []
    for key in chosen.rows:
        for model in chosen.models:
            rows = Rows(chosen.recipes(key, model, source), out, store, reporter, left)
            try:
                rows.run(refused.get(model), lost)
            except (KeyboardInterrupt, Exception):
                if rows.cells:
                    yield write_table(chosen, key, model, rows.cells, rows.failed, out, PART)
                raise
            if len(chosen.models) == 1 and not rows.cells:
                empty.append((key, model, rows))
                continue
            part = PART if rows.failed else chosen.part
            yield write_table(chosen, key, model, rows.cells, rows.failed, out, part)
    if len(empty) == len(chosen.rows):
        raise empty[0][2].errors[0]
    _say_where_the_time_went(store, reporter)
    for key, model, rows in empty:
        yield write_table(chosen, key, model, [], rows.failed, out, PART)


def incomplete(results: Sequence[Reproduced]) -> TrinityError | None:
    """The error that says which rows were not run; None if all were."""
    lost = [(result.model, row) for result in results for row in result.failed]
    if not lost:
        return None
    names = [f"{model}: {paper.recipe_name(f.row, f.pattern)}" for model, f in lost]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    reasons = " ".join(dict.fromkeys(row.reason for _, row in lost))
    return TrinityError(
        f"{len(lost)} rows were not run ({', '.join(names[:6])}{more}); the others are in the "
        f"tables. {reasons}"
    )


def _rows_of(table: Table, profile: Profile, asked: Selection) -> list[tuple[Row, str | None]]:
    """What is run of a table: the profile's rows.

    If they match none of a table that is asked for by name, all of its rows.
    """
    if asked.rows is not None:
        return planned_rows(table, (asked.rows,))
    if asked.table is not None:
        return _matching(table, profile.rows) or planned_rows(table, ("*",))
    return planned_rows(table, profile.rows)


def planned_rows(table: Table, globs: tuple[str, ...]) -> list[tuple[Row, str | None]]:
    """(row, pattern) of every run, in the table's order; ConfigError if no glob matches any."""
    kept = _matching(table, globs)
    if not kept:
        names = ", ".join(paper.recipe_name(r, p) for r, p in _matching(table, ("*",)))
        msg = f"--rows '{' '.join(globs)}' matches no row. Rows: {names}."
        raise ConfigError(msg)
    return kept


def _matching(table: Table, globs: tuple[str, ...]) -> list[tuple[Row, str | None]]:
    planned: list[tuple[Row, str | None]] = [(r, None) for r in table.rows if not r.by_pattern]
    planned += [
        (row, pattern)
        for pattern in table.patterns
        for row in table.rows
        if row.by_pattern and (row.patterns is None or pattern in row.patterns)
    ]
    return [
        (row, pattern)
        for row, pattern in planned
        if any(fnmatchcase(paper.recipe_name(row, pattern), glob) for glob in globs)
    ]


def first_at_hand(profile: Profile) -> Data:
    """The profile's first data set of which this machine can have every text; else its last one.

    The paper profile has one entry only, and then a missing text is looked for on the hub.
    """
    return next((option for option in profile.data if _is_at_hand(option)), profile.data[-1])


def _is_at_hand(option: Data) -> bool:
    """Whether every text and task is on this machine or, if the option is the hub's, on a hub that
    answers, or in its cache where the hub may not be asked.
    """
    texts = [option.calibration, *([option.tune] if option.tune else [])]
    suites_of = option.evaluate.suites
    if option.hub and (hub_is_off() or availability.hub_answers()):
        found = [corpora.obtainable(text.dataset, text.split) for text in texts]
        return all(found) and all(suites.data(spec).obtainable() for spec in suites_of)
    absent = [corpora.at_hand(text.dataset, text.split) for text in texts]
    return not any([*absent, *(suites.data(spec).at_hand() for spec in suites_of)])


def _say_cost(
    chosen: Chosen,
    source: Data,
    refused: dict[str, TrinityError],
    store: StageStore,
    reporter: Reporter,
) -> "cost.Left":
    """Say what the profile will cost, before its first model is fetched."""
    # Imported here: it loads torch, and a wrong paper or table is found without it.
    from trinity.harness.latency import ceilings
    from trinity.harness.repro import cost

    # First of all: a tiny model is trained on the way to its cost.
    reporter.say(f"profile {chosen.profile_name}: {chosen.profile.summary}")
    works = []
    for model in chosen.models:
        if model in refused:
            continue
        planned = [r for key in chosen.rows for *_, r in chosen.recipes(key, model, source)]
        try:
            works.append(cost.of_model(model, planned, store, reporter))
        except TrinityError as error:  # its rows will say the same, and the others go on
            reporter.say(f"{model}: its cost is not known: {error}")
    if works:
        limits = None if availability.has_gpu() else ceilings.kept(store)
        for line in cost.said(works, limits):
            reporter.say(line)
    return cost.Left(
        {
            f"{work.model} {row}": seconds
            for work in works
            for row, seconds in zip(work.rows, work.by_row, strict=False)
        }
    )


def _say_where_the_time_went(store: StageStore, reporter: Reporter) -> None:
    from trinity.harness.repro import cost  # as in `_say_cost`

    for line in cost.where_it_went(store.spent.parts()):
        reporter.say(line)


def write_table(
    chosen: Chosen,
    table_name: str,
    model: str,
    cells: list[Cell],
    lost: Sequence[Failed],
    out: Path,
    part: str,
) -> Reproduced:
    """Render one model's rows into `out/tables`.  lost: those not run   part: of file names"""
    definition, profile_name = chosen.definition, chosen.profile_name
    table = definition.tables[table_name]
    if cells:
        label = cells[0].record.model.label
        whole = tables.render(definition, table, profile_name, cells)
        rendered = failed.beside(whole, label, lost)
    else:
        label = model.rpartition("/")[2]
        rendered = failed.alone(definition, table, profile_name, label, lost)
    record.folder_of(label, table_name)  # refuses a label that is a path
    folder = out / "tables" / definition.name
    with writing(out):
        folder.mkdir(parents=True, exist_ok=True)
    stem = f"{table_name}-{profile_name}-{label}{part}"
    forms = {
        "md": rendered.markdown,
        "csv": rendered.csv,
        "tex": rendered.latex,
        "html": rendered.html,
    }
    paths = []
    for ending, text in forms.items():
        path = folder / f"{stem}.{ending}"
        write_text(path, text)
        paths.append(path)
    return Reproduced(label, rendered.markdown, tuple(paths), tuple(lost), rendered.compact)
