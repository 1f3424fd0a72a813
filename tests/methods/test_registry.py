"""methods/registry.py.  Third-party packages are tested in test_plugin_package.py."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from trinity.methods import plugins, registry
from trinity.methods.contract import (
    LayerStats,
    MethodConfig,
)
from trinity.methods.declarations import KINDS
from trinity.methods.dense import DENSE
from trinity.methods.errors import ConfigError, PluginError


class Distribution:
    """What the registry reads of a distribution."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name, "0.1"


def entry(name: str, value: str, distribution: str) -> EntryPoint:
    """An entry point as an installed distribution has it."""
    found = EntryPoint(name, value, registry.GROUP)
    vars(found)["dist"] = Distribution(distribution)
    return found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points that seem to be installed."""
    entries: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "installed", lambda group: entries)
    return entries


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module called `plugin` for entry points to point at."""
    module = ModuleType("plugin")
    monkeypatch.setitem(sys.modules, "plugin", module)
    return module


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_row_of_the_table_loads_and_is_what_it_says(name: str) -> None:
    method = registry.get(name)
    assert isinstance(method, KINDS)
    assert method.name == name
    assert method.paper
    assert issubclass(method.config, MethodConfig)
    assert method.config.__doc__
    assert registry.owner(name) == "trinity"


def test_the_table_is_sorted_and_names_list_it() -> None:
    assert list(registry.BUILT_IN) == sorted(registry.BUILT_IN)
    assert set(registry.BUILT_IN) <= set(registry.names())
    assert registry.names() == sorted(registry.names())


def test_an_unknown_method_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"'wnada' is not registered\. Did you mean wanda\?"):
        registry.get("wnada")
    with pytest.raises(
        ConfigError,
        match=r"not registered\. There is aqlm, awq, awq-clip, beam, .*dense, .*trinity\.methods",
    ):
        registry.get("xyzzy")


def test_an_unknown_option_is_refused_with_the_nearest_and_all_options() -> None:
    with pytest.raises(ConfigError, match=r"no option grupsize\. Did you mean group_size\?.*bits"):
        registry.configure("rtn", {"grupsize": 8})


def test_a_bad_value_is_refused_naming_the_option_and_the_value() -> None:
    with pytest.raises(ConfigError, match=r"method 'rtn': bits: .*found 5"):
        registry.configure("rtn", {"bits": 5})
    with pytest.raises(ConfigError, match=r"method 'wanda': pattern: .*expected N:M.*'half'"):
        registry.configure("wanda", {"pattern": "half"})


def test_configure_gives_the_frozen_config_of_the_method() -> None:
    config = registry.configure("rtn", {"bits": 3})
    assert config.model_dump()["bits"] == 3
    assert config.model_dump()["group_size"] == 128


def test_an_installed_method_is_listed_with_its_owner(
    installed: list[EntryPoint], plugin: ModuleType
) -> None:
    class Mine:
        name, paper, config, needs = "mine", "none", DENSE.config, DENSE.needs

        def problem(self, shape: tuple[int, int], config: Any) -> str | None:
            return None

        def compress(self, W: Any, current: Any, stats: LayerStats, config: Any) -> Any:
            return current

    plugin.MINE = Mine()  # type: ignore[attr-defined]
    installed.append(entry("mine", "plugin:MINE", "mine-dist"))
    assert "mine" in registry.names()
    assert registry.owner("mine") == "mine-dist"
    assert registry.get("mine") is plugin.MINE


def test_two_distributions_with_one_name_raise_and_both_are_named(
    installed: list[EntryPoint],
) -> None:
    installed += [entry("mine", "a:M", "first-dist"), entry("mine", "b:M", "second-dist")]
    with pytest.raises(ConfigError, match=r"'mine' is registered twice: .*first-dist.*second-dist"):
        registry.get("mine")
    assert "mine" in registry.names()
    assert registry.get("wanda").name == "wanda"


def test_a_built_in_name_cannot_be_taken(installed: list[EntryPoint]) -> None:
    installed.append(entry("wanda", "plugin:WANDA", "mine-dist"))
    with pytest.raises(ConfigError, match=r"'wanda' is registered twice: by trinity .*mine-dist"):
        registry.get("wanda")


def test_the_same_row_seen_twice_is_one_row(installed: list[EntryPoint]) -> None:
    installed += [entry("mine", "a:M", "first-dist"), entry("mine", "a:M", "first-dist")]
    assert registry.names().count("mine") == 1


def test_a_module_that_does_not_load_is_reported_with_its_own_error(
    installed: list[EntryPoint], plugin: ModuleType
) -> None:
    installed += [
        entry("gone", "no_such_module:M", "mine-dist"),
        entry("missing", "plugin:MISSING", "mine-dist"),
    ]
    with pytest.raises(PluginError, match=r"'gone' of mine-dist 0\.1: .*No module named"):
        registry.get("gone")
    with pytest.raises(PluginError, match=r"'missing' of .*has no attribute 'MISSING'"):
        registry.get("missing")


def test_an_object_that_is_no_method_is_refused_also_if_it_is_the_class_of_one(
    installed: list[EntryPoint], plugin: ModuleType
) -> None:
    plugin.NUMBER, plugin.CLASS = 3, type(DENSE)  # type: ignore[attr-defined]
    installed += [
        entry("number", "plugin:NUMBER", "mine-dist"),
        entry("class", "plugin:CLASS", "mine-dist"),
    ]
    with pytest.raises(PluginError, match=r"'number' of mine-dist 0\.1: .* of type int, which"):
        registry.get("number")
    with pytest.raises(PluginError, match=r"'class' of mine-dist 0\.1: .* of type type, which"):
        registry.get("class")


def test_a_method_registered_under_another_name_is_refused(
    installed: list[EntryPoint], plugin: ModuleType
) -> None:
    plugin.OTHER = DENSE  # type: ignore[attr-defined]
    installed.append(entry("other", "plugin:OTHER", "mine-dist"))
    with pytest.raises(PluginError, match=r"'other' of mine-dist 0\.1: .* calls itself 'dense'"):
        registry.get("other")


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("config", dict, "config: <class 'dict'> is not a subclass of MethodConfig"),
        ("needs", "hessian", "needs: 'hessian' is not a Statistic"),
        ("paper", None, "paper: None does not say where the method is from"),
    ],
)
def test_a_method_with_an_attribute_of_another_type_is_refused(
    attribute: str, value: object, said: str, installed: list[EntryPoint], plugin: ModuleType
) -> None:
    mine = type("Mine", (type(DENSE),), {"name": "mine", attribute: value})
    plugin.MINE = mine()  # type: ignore[attr-defined]
    installed.append(entry("mine", "plugin:MINE", "mine-dist"))
    with pytest.raises(PluginError, match=said):
        registry.get("mine")
