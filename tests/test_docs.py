"""Every snippet in the documentation runs, what it names exists, and every method has a page that
names its options.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import ModuleType

import pytest
import torch

from trinity.harness.compress.activations import collected
from trinity.methods import options, registry, tensors
from trinity.methods.caching import CacheMethod
from trinity.methods.catalogue import CATALOGUE
from trinity.methods.contract import (
    STATISTICS,
    BlockMethod,
    CheckpointSource,
    ModelMethod,
    Statistic,
)
from trinity.methods.formats import (
    NM,
    Adapted,
    Dense,
    Quantized,
    Sparse,
    Transposed,
    Unstructured,
    WithOutliers,
)
from trinity.methods.planning import PlanMethod
from trinity.methods.rotations import RotationMethod
from trinity.methods.searching import SearchMethod
from trinity.methods.transforms import TransformMethod

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    PROJECT_ROOT / "README.md",
    PROJECT_ROOT / "CONTRIBUTING.md",
    *sorted((PROJECT_ROOT / "benchmarks").rglob("*.md")),
    *sorted((PROJECT_ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(([^)#:]*)#([^)]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
TOP_FOLDERS = ("harness/", "lowering/", "methods/", "tests/", "docs/", "benchmarks/", "results/")
COLUMNS = 120
PLACEHOLDERS = re.compile(
    r"<|\.\.\.|\b(?!README|CHANGELOG)[A-Z]{3,}\b"
)  # for the reader to fill in


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


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_links_into_pages_lead_to_a_heading(page: Path) -> None:
    for target, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        to = page.parent / target if target else page
        if to.suffix == ".md":
            assert anchor in _anchors(to), f"{page.name} links to {target}#{anchor}"


def code_spans(page: Path) -> Iterator[str]:
    """Every word in backticks, and every word of a command."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from re.sub(r"#.*", "", block).split()
    for span in CODE_SPAN.findall(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        yield from span.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    tests = {path.name for path in (PROJECT_ROOT / "tests").rglob("test_*.py")}
    # A page may tell the reader to write files: "`src/x.py`:", and then what is in it.
    written = set(re.findall(r"^`([^`]+)`:$", page.read_text(encoding="utf-8"), re.MULTILINE))
    missing = set()
    for word in code_spans(page):
        name = word.strip(",;").partition("::")[0]
        if name in written or PLACEHOLDERS.search(name):
            continue
        made_by_a_run = name.startswith("results/") and name.endswith("/")
        if name.startswith(TOP_FOLDERS) and not made_by_a_run and not list(PROJECT_ROOT.glob(name)):
            missing.add(name)
        if re.fullmatch(r"test_\w+\.py", name) and name not in tests:
            missing.add(name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    groups = _entry_point_groups()
    names = {
        found.group()
        for word in code_spans(page)
        for found in re.finditer(r"\btrinity(\.\w+)+", word)
    }
    imported = re.findall(r"from (trinity[\w.]+) import (\w+)", page.read_text(encoding="utf-8"))
    names |= {".".join(parts) for parts in imported}
    known = names & groups | {
        name for name in names if name in ("trinity.json", "trinity.published")
    }
    assert not [name for name in names - known if not _is_there(name)]


@cache
def _entry_point_groups() -> frozenset[str]:
    """The names of `GROUP = ...` and `..._GROUP = ...` in the code."""
    found: set[str] = set()
    for folder in ("harness", "lowering", "methods"):
        for path in (PROJECT_ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'^(?:\w+_)?GROUP = "(trinity\.\w+)"$', text, re.MULTILINE))
    return frozenset(found)


def _is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that one defines or exports."""
    parts = dotted.split(".")[1:]
    for count in range(len(parts), 0, -1):
        place, rest = PROJECT_ROOT.joinpath(*parts[:count]), parts[count:]
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.is_file() or place.is_dir():
            return not rest or (module.is_file() and rest[0] in _defined(module))
    return False


@cache
def _defined(module: Path) -> set[str]:
    """Names at the top of a module: classes, functions, values, what it imports."""
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = {path.stem for path in (PROJECT_ROOT / "harness" / "commands").glob("*.py")}
    commands |= {"eval"}  # evaluate.py: `eval` is Python's
    named = set(re.findall(r"(?:^|`|bin/)trinity ([a-z]+)", text, re.MULTILINE))
    assert named <= commands
    tox = (PROJECT_ROOT / "tox.ini").read_text(encoding="utf-8")
    for name in re.findall(r"tox -e ([\w-]*\w)(?![\w-]|,)", text):
        first, _, last = name.rpartition("-")
        factors = re.search(rf"^\[testenv:{first}-{{([\w,-]+)}}\]", tox, re.MULTILINE)
        assert f"[testenv:{name}]" in tox or (factors and last in factors[1].split(","))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))
def test_lines_of_prose_are_wrapped(page: Path) -> None:
    # Tables, headings, images and commands stay on one line, and so does a link that is alone.
    inside, long = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        if not inside and not line.startswith(("|", "#", "!")) and len(line) > COLUMNS:
            long += [line] if " " in line.strip() else []
    assert not long


def test_the_index_lists_every_page() -> None:
    docs = PROJECT_ROOT / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"README.md"}
    assert not pages - set(LINK.findall(index))


def test_the_architecture_lists_every_room_from_the_top_floor_down() -> None:
    page = (PROJECT_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    listed = re.findall(r"`(\w+)/`", "".join(re.findall(r"^\| (.+?) \|", rooms, re.MULTILINE)))
    config = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for folder in ("harness", "lowering"):
        there = {path.parent.name for path in (PROJECT_ROOT / folder).glob("*/__init__.py")}
        assert there <= set(listed)
        (floors,) = (
            contract["layers"]
            for contract in config["tool"]["importlinter"]["contracts"]
            if contract.get("containers") == [f"trinity.{folder}"]
        )
        rank = {room: floor for floor, rooms in enumerate(floors) for room in rooms.split(" | ")}
        ranks = [rank[room] for room in listed if room in there]
        assert ranks == sorted(ranks)


ADDING = (PROJECT_ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in ADDING.splitlines()
    if line.startswith("|")
]


def _names(module: ModuleType) -> set[str]:
    """What a module defines for others."""
    own = {n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__}
    return {name for name in own if not name.startswith("_")}


def test_the_page_lists_every_statistic_as_the_walker_gives_it() -> None:
    linear = torch.nn.Linear(6, 4)
    needs = reduce(or_, Statistic)
    with collected({"fc": linear}, [["fc"]], needs) as result, torch.no_grad():
        with result.dense():
            linear(torch.randn(2, 5, 6))
        linear(torch.randn(2, 5, 6))
    # Gradients are of a whole model, and come from a pass of their own.
    stats, listed = result()["fc"].with_own(torch.zeros(4, 6), torch.zeros(3, 4, 6)), {}
    sizes = {"out": 4, "in": 6, "seq": 5, "tokens": stats.tokens, "samples": 3}
    for row in ROWS:
        if len(row) == 5 and row[0].strip("`") in Statistic.__members__ and row[1]:
            need, name, shape, dtype = (cell.strip("`") for cell in row[:4])
            listed[Statistic[need]] = name
            found = getattr(stats, name)
            assert list(found.shape) == [sizes[size] for size in shape.strip("[]").split(", ")]
            assert str(found.dtype) == f"torch.{dtype}"
    assert listed == STATISTICS


def test_the_page_lists_every_helper_with_its_parameters() -> None:
    listed = {row[0].strip("`") for row in ROWS if re.fullmatch(r"`\w+\(.*\)`", row[0])}
    listed = {name for name in listed if name.partition("(")[0] in _names(tensors)}
    made = set()
    for name in _names(tensors):
        parameters = inspect.signature(getattr(tensors, name)).parameters
        made.add(f"{name}({', '.join(parameters)})")
    assert listed == made


def test_the_page_lists_every_option_type() -> None:
    listed = {row[0].strip("`") for row in ROWS if len(row) == 3}
    for name in ("PatternOption", "Bits", "FloatName", "GroupSize"):
        assert name in listed
        assert hasattr(options, name)
    assert _names(options) == {"cast"}
    assert "`cast(values, name)`" in ADDING


def test_the_page_lists_every_field_of_every_format() -> None:
    listed: dict[str, list[str]] = {}
    name = ""
    for row in ROWS:
        if len(row) == 3 and re.fullmatch(r"`\w+`", row[1]):
            name = row[0].strip("`") or name
            listed.setdefault(name, []).append(row[1].strip("`"))
    for kind in (Dense, Quantized, Sparse, WithOutliers, Adapted, Transposed, NM, Unstructured):
        assert listed[kind.__name__] == [field.name for field in fields(kind)]


def test_the_index_places_every_method() -> None:
    page = (PROJECT_ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines()]
    found = {row[0]: row[1:] for row in rows if len(row) == 7 and row[0].startswith("[")}
    assert list(found) == [f"[{name}]({name}.md)" for name in sorted(registry.BUILT_IN)]
    words = {
        BlockMethod: "block",
        TransformMethod: "scales",
        PlanMethod: "plan",
        SearchMethod: "search",
        RotationMethod: "stream",
        CacheMethod: "cache",
        ModelMethod: "model",
        CheckpointSource: "checkpoint",
    }
    for name, entry in CATALOGUE.items():
        sees, needs, makes, trains, paper, verdict = found[f"[{name}]({name}.md)"]
        kinds = [word for kind, word in words.items() if isinstance(registry.get(name), kind)]
        assert (sees, needs, makes) == ("".join(kinds) or "layer", entry.needs, entry.format)
        assert entry.paper in paper
        assert trains in {"yes", "no"}
        assert trains == "yes" or sees != "model"
        assert verdict
