import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from trinity.harness.models import families
from trinity.methods import plugins
from trinity.methods.errors import ConfigError, PluginError, UnsupportedError

ROW = families.Family("model.layers", (("mlp.fc",),))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Rows that seem to be installed."""
    entries: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "installed", lambda group: entries)
    module = ModuleType("plugin")
    module.ROW, module.NUMBER = ROW, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugin", module)
    return entries


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, families.GROUP)


def test_reading_the_table_imports_no_model_library() -> None:
    program = (
        "import sys; from trinity.harness.models import families; families.names();"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_row_of_a_package_counts_like_ours(installed: list[EntryPoint]) -> None:
    installed.append(entry("mine", "plugin:ROW"))
    assert "mine" in families.names()
    assert families.get("mine") is ROW


def test_an_unknown_type_is_refused_without_a_guess() -> None:
    with pytest.raises(
        UnsupportedError, match=r"'mixtral' is not supported\. Supported: "
    ) as error:
        families.get("mixtral")
    assert "Did you mean" not in str(error.value)


def test_a_name_that_two_register_is_an_error_that_names_both(installed: list[EntryPoint]) -> None:
    installed.append(entry("llama", "plugin:ROW"))
    with pytest.raises(ConfigError, match=r"registered twice: by trinity .* and by .*plugin:ROW"):
        families.get("llama")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module:ROW", "No module named 'no_such_module'"),
        ("plugin:MISSING", "no attribute 'MISSING'"),
        ("plugin:NUMBER", "is of type int, not a trinity.harness.models.families.Family"),
    ],
)
def test_a_broken_row_breaks_nothing_else(
    target: str, said: str, installed: list[EntryPoint]
) -> None:
    installed.append(entry("mine", target))
    assert "mine" in families.names()
    assert families.get("llama") is families.BUILT_IN["llama"]
    with pytest.raises(PluginError, match=said):
        families.get("mine")
