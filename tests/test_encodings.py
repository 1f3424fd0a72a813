"""Every text file is UTF-8, whatever the locale: no call leaves the encoding to the machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("harness", "lowering", "methods", "benchmarks")
PROGRAMS = ("run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec")


def _sources(root: Path) -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]


def _depends_on_the_locale(call: ast.Call) -> bool:
    """Whether a call opens a text file, or the output of a program, without an encoding."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return isinstance(call.func, ast.Attribute) and len(call.args) == 1
    if name in ("open", "fdopen", "NamedTemporaryFile"):
        modes = [*call.args, *([keywords["mode"]] if "mode" in keywords else [])]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        owner = ast.unparse(call.func)
        binary = any("b" in text for text in texts if set(text) <= set("rwxabt+"))
        if owner == "gzip.open":  # binary unless told
            return any("t" in text for text in texts if set(text) <= set("rwxabt"))
        # A class of ours that is opened (`Checkpoint.open`) is no file, and an archive is bytes.
        other = owner in ("os.open", "safe_open", "tarfile.open") or owner[0].isupper()
        return not binary and not other
    return name in PROGRAMS and bool({"text", "universal_newlines"} & set(keywords))


def _found(path: Path) -> Iterator[int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _depends_on_the_locale(node):
            yield node.lineno


def test_every_text_file_is_opened_as_utf_8(project_root: Path) -> None:
    found = [
        f"{path.relative_to(project_root)}:{line}"
        for path in _sources(project_root)
        for line in _found(path)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("call", "depends"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("write_text(path, text)", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('rb')", False),
        ("open(path, 'w')", True),
        ("open(path, mode='wb')", False),
        ("os.open(path, os.O_RDWR)", False),
        ("Checkpoint.open(folder)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
        ("Flip(text=question)", False),
    ],
)
def test_calls_that_depend_on_the_locale_are_known(call: str, depends: bool) -> None:
    (statement,) = ast.parse(call).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert _depends_on_the_locale(statement.value) == depends
