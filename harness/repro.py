"""Regenerate a paper's tables: one recipe a row, one record a recipe, tables rendered from the
records.
"""

import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import torch

from trinity.harness import data, paper, run
from trinity.harness.accuracy import suites
from trinity.harness.paper import Data, Paper, Profile, Row, Table
from trinity.harness.progress import Reporter
from trinity.harness.recipe import Recipe
from trinity.harness.records import record
from trinity.harness.report import tables
from trinity.harness.report.judged import Cell
from trinity.harness.store import StageStore, write_text
from trinity.methods.errors import ConfigError, MachineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduced:
    """A rendered table and its files."""

    model: str
    markdown: str
    files: tuple[Path, ...]


def default_profile() -> str:
    """'paper' needs a GPU; without one the embedded model is the sensible start."""
    return "paper" if torch.cuda.is_available() else "embedded"


def reproduce(
    name: str,
    table_name: str | None,
    profile_name: str | None,
    rows_glob: str,
    out: Path,
    store: StageStore,
    reporter: Reporter,
) -> list[Reproduced]:
    """Run every row of a paper's tables and render them, one rendering for each model."""
    definition = paper.load(name)
    profile_name = profile_name or default_profile()
    profile: Profile = paper.pick("profile", profile_name, definition.profiles)
    wanted = (table_name,) if table_name else profile.tables or tuple(definition.tables)
    chosen = {key: paper.pick("table", key, definition.tables) for key in wanted}
    check_needs(profile)
    at_hand = first_at_hand(profile)
    results = []
    for key, table in chosen.items():
        globs = profile.rows if rows_glob == "*" else (rows_glob,)
        planned = planned_rows(table, globs)
        for model in profile.models:
            recipes = [
                (row, pattern, paper.recipe(profile, at_hand, model, table, row, pattern))
                for row, pattern in planned
            ]
            cells = _cells(recipes, out, store, reporter)
            # A table of some rows must not take the place of the whole one.
            part = "" if rows_glob == "*" else "-part"
            results.append(write_table(definition, key, profile_name, cells, out, part))
    return results


def planned_rows(table: Table, globs: tuple[str, ...]) -> list[tuple[Row, str | None]]:
    """(row, pattern) of every run, in the table's order; ConfigError if no glob matches any."""
    planned: list[tuple[Row, str | None]] = [(r, None) for r in table.rows if not r.by_pattern]
    planned += [
        (row, pattern)
        for pattern in table.patterns
        for row in table.rows
        if row.by_pattern and (row.patterns is None or pattern in row.patterns)
    ]
    kept = [
        (row, pattern)
        for row, pattern in planned
        if any(fnmatchcase(paper.recipe_name(row, pattern), glob) for glob in globs)
    ]
    if not kept:
        names = ", ".join(paper.recipe_name(r, p) for r, p in planned)
        msg = f"--rows '{' '.join(globs)}' matches no row. Rows: {names}."
        raise ConfigError(msg)
    return kept


def first_at_hand(profile: Profile) -> Data:
    """The profile's first data set that this machine can have; else its last one.

    The paper profile has one entry only, and then a missing text is looked for on the hub.
    """
    for option in profile.data:
        if option.hub and hub_answers():
            return option
        texts = [option.calibration, *([option.tune] if option.tune else [])]
        absent = [data.at_hand(text.dataset, text.split) for text in texts]
        absent += [suites.at_hand(suite) for suite in option.evaluate.suites]
        if not any(absent):
            return option
    return profile.data[-1]


@cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached; False where HF_HUB_OFFLINE forbids asking."""
    if data.hub_is_off():
        return False
    # Imported here: a run on local data never asks the hub.
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HTTPError

    try:
        dataset_info("Salesforce/wikitext", timeout=5)
    except (HTTPError, OSError) as error:
        logger.info("the Hugging Face hub does not answer: %s", error)
        return False
    return True


def check_needs(profile: Profile) -> None:
    """MachineError that lists all that a profile needs and this machine lacks."""
    lacking = []
    if "gpu" in profile.needs and not torch.cuda.is_available():
        lacking.append("an NVIDIA GPU (torch finds none)")
    if "hub" in profile.needs:
        lacking += _missing_models(profile)
    if lacking:
        msg = (
            f"this profile ({profile.summary}) needs {'; '.join(lacking)}. "
            f"Use `--profile embedded` on a machine without them."
        )
        raise MachineError(msg)


def _missing_models(profile: Profile) -> list[str]:
    # Imported here: only this profile talks to the hub.
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    missing, reason = [], ""
    for model in profile.models:
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            continue
        try:
            model_info(model, timeout=10)
        except (HTTPError, OSError) as error:
            missing.append(model)
            reason = str(error).strip().partition("\n")[0]
    if not missing:
        return []
    return [f"the models {', '.join(missing)}, which the Hugging Face hub did not give ({reason})"]


def _cells(
    recipes: list[tuple[Row, str | None, Recipe]], out: Path, store: StageStore, reporter: Reporter
) -> list[Cell]:
    # All rows are checked before the first is run: an error in the last must not cost an hour.
    for _, _, recipe in recipes:
        run.Run(recipe, store, reporter)
    cells = []
    for number, (row, pattern, recipe) in enumerate(recipes, start=1):
        reporter.say(f"row {number} of {len(recipes)}: {recipe.name}")
        finished = run.Run(recipe, store, reporter).finish()
        path = record.write(finished.record, out)
        cells.append(Cell(row, pattern, finished.record, str(path.relative_to(out))))
    return cells


def write_table(
    definition: Paper,
    table_name: str,
    profile_name: str,
    cells: list[Cell],
    out: Path,
    part: str,
) -> Reproduced:
    """Render cells of one model into `out/tables`.  part: ending of the file names"""
    rendered = tables.render(definition, definition.tables[table_name], profile_name, cells)
    model = cells[0].record.model.label
    folder = out / "tables" / definition.name
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{table_name}-{profile_name}-{model}{part}"
    forms = {"md": rendered.markdown, "csv": rendered.csv, "tex": rendered.latex}
    paths = []
    for ending, text in forms.items():
        path = folder / f"{stem}.{ending}"
        write_text(path, text)
        paths.append(path)
    return Reproduced(model, rendered.markdown, tuple(paths))
