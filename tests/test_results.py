"""The committed tables are what the committed records render to.

Committed is what git's index holds: whoever regenerates a table in the checkout has records and
tables of their own in `results/`, and the tests pass beside them.
"""

import csv
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trinity.harness.recipes import paper
from trinity.harness.repro.published_cells import WORDS
from trinity.harness.repro.rendering import render_all


@pytest.fixture(scope="module")
def committed(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the records, tables and the page that git's index holds."""
    folder = tmp_path_factory.mktemp("committed")
    # The checkout may be another user's.
    git = ["git", "-c", f"safe.directory={project_root}", "-C", str(project_root)]
    listing = [*git, "ls-files", "-z", "results/v1", "results/tables"]
    listing += ["results/published.md", "results/published.csv"]
    try:
        names = subprocess.run(listing, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("missing: git, or its index, which says what of results/ is committed")
    if not names:
        pytest.skip("missing: results/ in git's index (this folder is no checkout of its own)")
    copy = [*git, "checkout-index", "-z", "--stdin", f"--prefix={folder}/"]
    subprocess.run(copy, input=names, check=True)
    return folder / "results"


@pytest.fixture(scope="module")
def rendered(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the committed records render to."""
    folder = tmp_path_factory.mktemp("rendered")
    (folder / "v1").symlink_to(committed / "v1")
    render_all(folder)
    return folder


@pytest.mark.parametrize("name", [f"tables/{name}" for name in paper.names()])
def test_tables_are_rendered_from_the_newest_records(
    name: str, committed: Path, rendered: Path
) -> None:
    before, now = (
        {path.name: path.read_text("utf-8") for path in (base / name).glob("*")}
        for base in (committed, rendered)
    )
    assert before.keys() == now.keys()
    stale = [file for file in before if before[file] != now[file]]
    assert not stale, "run `tox -e repro-all` and `git add` what it writes"


@pytest.mark.parametrize("name", ["published.md", "published.csv"])
def test_the_page_of_published_cells_is_that_of_the_records(
    name: str, committed: Path, rendered: Path
) -> None:
    before, now = ((base / name).read_text("utf-8") for base in (committed, rendered))
    assert before == now, "run `tox -e repro-all` and `git add` what it writes"


def test_the_page_counts_each_of_its_cells_once_by_verdict(rendered: Path) -> None:
    with (rendered / "published.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts = Counter(row["verdict"] for row in rows)
    page = (rendered / "published.md").read_text("utf-8")
    for word in WORDS:
        assert f"| {word} | {counts[word]} |" in page
    assert f"| all | {len(rows)} |" in page
    assert all(row["published"] and (rendered / row["record"]).is_file() for row in rows)
    assert all(row["why"] for row in rows if row["verdict"] == "not comparable")


def test_every_latex_table_compiles_with_plain_pdflatex(rendered: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("missing: pdflatex (Debian: texlive-latex-recommended)")
    tables = sorted((rendered / "tables").rglob("*.tex"))
    for number, path in enumerate(tables):
        shutil.copy(path, tmp_path / f"table{number}.tex")
    lines = [r"\documentclass{article}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
    lines += [rf"\input{{table{number}}}\clearpage" for number in range(len(tables))]
    text = "\n".join([*lines, r"\end{document}", ""])
    (tmp_path / "all.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "all.pdf").is_file()


def test_every_html_table_is_well_formed_and_has_the_rows_of_the_markdown(rendered: Path) -> None:
    for path in (rendered / "tables").rglob("*.html"):
        text = path.read_text("utf-8").replace("<!doctype html>", "")
        page = ElementTree.fromstring(re.sub(r"<meta[^>]*>", "", text))
        lines = path.with_suffix(".md").read_text("utf-8").splitlines()
        of_rows = [line for line in lines if line.startswith("| ")]
        heads = [line for line in of_rows if line.startswith(("| ---", "| Method", "| Row"))]
        assert len(page.findall(".//tbody/tr")) == len(of_rows) - len(heads)
        assert "<script" not in text
        assert not re.search(r"(src|href)=.(http|//)", text)  # nothing is fetched
