"""One broken plugin breaks no listing and nothing beside it, in every entry-point group."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from trinity.harness.accuracy import suites
from trinity.harness.installed import registered
from trinity.harness.models import families
from trinity.harness.recipes import paper
from trinity.lowering.targets import targets
from trinity.methods import plugins, registry
from trinity.methods.errors import PluginError
from trinity.methods.formats import kinds

# group -> (names, load, one of ours)
GROUPS: dict[str, tuple[Callable[[], list[str]], Callable[[str], object], str]] = {
    registry.GROUP: (registry.names, registry.get, "wanda"),
    suites.GROUP: (suites.names, suites.load, "perplexity-pydoc"),
    suites.KINDS_GROUP: (suites.kinds, suites.kind, "perplexity"),
    paper.GROUP: (paper.names, paper.load, "slim"),
    targets.GROUP: (targets.names, targets.get, "llvm-cpu"),
    families.GROUP: (families.names, families.get, "llama"),
    kinds.GROUP: (kinds.names, kinds.get, "grid"),
}
# module text -> what the error says
BROKEN = {
    "import no_such_package": "ModuleNotFoundError: No module named 'no_such_package'",
    "def f(:": "SyntaxError",
    "OTHER = 1": "has no attribute 'OBJECT'",
    "OBJECT = 3": "is of type int, ",
    "import sys; sys.exit(0)": "SystemExit: 0",
    "raise SystemExit": "SystemExit",
    "1 / 0": "ZeroDivisionError",
}


@pytest.fixture(params=BROKEN, ids=lambda text: text)
def said(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A broken plugin called `broken` in every group; what its error says."""
    text: str = request.param
    module = f"broken_plugin_{list(BROKEN).index(text)}"
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        plugins, "installed", lambda group: [EntryPoint("broken", f"{module}:OBJECT", group)]
    )
    return BROKEN[text]


@pytest.mark.parametrize("group", GROUPS)
def test_using_it_says_what_is_wrong_and_the_others_work(group: str, said: str) -> None:
    names, load, ours = GROUPS[group]
    assert {"broken", ours} <= set(names())
    assert load(ours)
    with pytest.raises(PluginError, match=r"'broken' of .*Mend or uninstall") as error:
        load("broken")
    assert said in str(error.value)


def test_the_listing_of_methods_names_it(said: str) -> None:
    rows = {row["name"]: row for row in registered.list_methods()}
    assert said in rows["broken"]["format"]
    assert rows["wanda"]["format"] == "2:4 float32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "while parsing"),
        ("3", "Input should be a valid dictionary"),
        ("name: broken", "title"),
        ("\xff".encode("latin-1"), "can't decode"),
        (None, "No such file"),
    ],
)
def test_a_papers_yaml_that_cannot_be_read_is_its_packages_fault(
    text: str | bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "broken.yaml"
    if text is not None:
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "yaml_plugin.py").write_text(
        f"from pathlib import Path; OBJECT = Path({str(place)!r})", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "yaml_plugin", raising=False)
    entry = EntryPoint("broken", "yaml_plugin:OBJECT", paper.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    with pytest.raises(PluginError, match=r"paper 'broken' of .*broken\.yaml cannot be read") as e:
        paper.load("broken")
    assert said in str(e.value)


def test_a_method_that_fails_when_it_is_tried_breaks_no_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_plugin.py").write_text(
        "from trinity.methods.dense import DENSE\n"
        "class Mine(type(DENSE)):\n"
        "    name = 'broken'\n"
        "    def compress(self, *_): raise ZeroDivisionError('by zero')\n"
        "OBJECT = Mine()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("broken", "failing_plugin:OBJECT", registry.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    rows = {row["name"]: row for row in registered.list_methods()}
    assert "fails when tried: ZeroDivisionError" in rows["broken"]["format"]
