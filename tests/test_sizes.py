"""A file is read in one sitting and a function on one screen: both outgrow themselves unseen."""

import ast
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).parents[1]
FOLDERS = ("harness", "lowering", "methods", "benchmarks", "tests")
FILE, FUNCTION = 400, 50
# A function may be longer for a reason that stands above it, in a comment that begins so.
REASON = "# Long: "


def _files() -> list[Path]:
    return [path for name in FOLDERS for path in sorted((PROJECT_ROOT / name).rglob("*.py"))]


def _name(path: Path) -> str:
    return path.relative_to(PROJECT_ROOT).as_posix()


def too_long(source: str) -> dict[str, int]:
    """Functions of a file, with the lines of their bodies, that are too long without a reason.

    Parameters do not count: those of a command are its options, each with its help.
    """
    lines, found = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        above = lines[first - 2].strip() if first > 1 else ""
        size = (node.end_lineno or 0) - node.body[0].lineno + 1
        if size > FUNCTION and not above.startswith(REASON):
            found[node.name] = size
    return found


def test_no_file_is_past_400_lines() -> None:
    sizes = {_name(path): len(path.read_text("utf-8").splitlines()) for path in _files()}
    found = {name: size for name, size in sizes.items() if size > FILE}
    assert found == {}


def test_no_function_is_past_50_lines_without_a_reason_at_its_head() -> None:
    found = {
        f"{_name(path)}: {function}": size
        for path in _files()
        for function, size in too_long(path.read_text("utf-8")).items()
    }
    assert found == {}


@pytest.mark.parametrize(
    ("head", "counts"), [("", True), ("# Long: a table.\n", False), ("# A table.\n", True)]
)
def test_a_reason_is_a_comment_above_a_function(head: str, counts: bool) -> None:
    body = "    x = 1\n" * (FUNCTION + 1)
    assert bool(too_long(f"{head}def f():\n{body}")) == counts


def test_parameters_do_not_count() -> None:
    parameters = "".join(f"    p{number}=0,\n" for number in range(FUNCTION + 1))
    assert too_long(f"def f(\n{parameters}):\n    return 1\n") == {}
