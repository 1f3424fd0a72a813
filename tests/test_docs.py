"""Every snippet in the documentation runs, and every method has a page that names its options."""

import re
from pathlib import Path

import pytest

from trinity.methods import registry

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for path in [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").rglob("*.md"))]
    if path.is_file()
]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def snippets() -> list[tuple[str, int, str]]:
    """(page, line of its first statement, program) of every block marked as Python."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in FENCE.finditer(text):
            line = text.count("\n", 0, block.start(1)) + 1
            found.append((str(page.relative_to(PROJECT_ROOT)), line, block[1]))
    return found


@pytest.mark.parametrize(
    ("page", "line", "program"),
    [pytest.param(*snippet, id=f"{snippet[0]}:{snippet[1]}") for snippet in snippets()],
)
def test_every_python_snippet_runs(
    page: str, line: int, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The empty lines make a traceback name the line of the page.
    code = compile("\n" * (line - 1) + program, page, "exec")
    exec(code, {"__name__": "__main__"})


def test_there_are_snippets_to_run() -> None:
    assert len(snippets()) >= len(registry.BUILT_IN)


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_built_in_method_has_a_page_that_names_its_options_and_paper(name: str) -> None:
    page = PROJECT_ROOT / "docs" / "methods" / f"{name}.md"
    assert page.is_file()
    text = page.read_text(encoding="utf-8")
    method = registry.get(name)
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows == set(method.config.model_fields)
    if method.paper.startswith("arXiv:"):
        assert method.paper in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
