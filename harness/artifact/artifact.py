"""A folder that reviewers accept: records, recipes, versions, expected results, and how to re-run.

Nothing is measured.  All that a machine can know is filled in; what only authors know (who they
are, the paper) is named as theirs to fill in.
"""

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from trinity.harness.artifact import text
from trinity.harness.artifact.expected import compute, expected, names_of
from trinity.harness.artifact.lm_eval import results_of
from trinity.harness.artifact.lock import lock
from trinity.harness.figures.shown import Shown
from trinity.harness.runs import attempts
from trinity.harness.store.stages import as_json
from trinity.harness.store.writing import check_new, make_folder, writing

SUMS = "SHA256SUMS"
SCRIPT = "reproduce.py"


def make(runs: Sequence[Shown], results: Path, out: Path) -> Path:
    """Make the folder, which must be new or empty, and beside it an archive: its path."""
    check_new(out)
    make_folder(out, lambda place: _fill(runs, results, place))
    archive = out.parent / f"{out.name}.tar.gz"
    with writing(out.parent):
        archive.write_bytes(_packed(out))
    return archive


def _fill(runs: Sequence[Shown], results: Path, place: Path) -> None:
    place.mkdir()
    names = names_of(runs)
    for run in runs:
        name = names[run.path]
        _copy(results / run.path, place / "results" / run.path)
        recipe = yaml.safe_dump(run.record.recipe, sort_keys=False, allow_unicode=True)
        _write(place / "recipes" / f"{name}.yaml", recipe)
        if scored := results_of(run.record):
            path = place / "lm_eval" / name / f"results_{run.record.date}.json"
            _write(path, as_json(scored))
    for folder in ("tables", attempts.FOLDER):
        if (results / folder).is_dir():
            shutil.copytree(results / folder, place / "results" / folder)
    spent = compute(attempts.read_all(results))
    _write(place / "expected.json", as_json(expected(runs)))
    _write(place / "requirements.lock", lock(runs))
    _write(place / "README.md", text.readme(runs, spent))
    _write(place / "CHECKLIST.md", text.checklist(runs, spent))
    _write(place / "LICENCES.md", text.licences(runs))
    _write(place / "CITATION.cff", text.citation(runs))
    _write(place / "results" / "runs.csv", text.table(runs))
    _copy(Path(__file__).with_name(SCRIPT), place / SCRIPT)
    _write(place / SUMS, _sums(place))


def _sums(place: Path) -> str:
    """As `sha256sum --check` reads them."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(place).as_posix()}\n"
        for path in files
    )


def _packed(folder: Path) -> bytes:
    """A tar archive, the same for the same files: without owners and hours."""
    stream = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                entry = tarfile.TarInfo(name)
                data = path.read_bytes()
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
