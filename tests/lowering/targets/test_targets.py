"""Targets: what exists, what is refused, and how others add theirs."""

from importlib.metadata import EntryPoint

import pytest

from trinity.lowering.module import devices
from trinity.lowering.targets import targets
from trinity.lowering.targets.targets import Target
from trinity.methods import plugins
from trinity.methods.errors import ConfigError, MachineError, PluginError

MINE = Target("mine", (), None, "mine is not here.")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Stands in for the installed packages' entry points."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "installed", lambda group: points)
    return points


def test_the_cpu_is_always_there() -> None:
    assert devices.available(targets.get("llvm-cpu"))
    assert devices.require(targets.get("llvm-cpu")) == "local-task"


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'vulcan' is not registered. Did you mean vulkan"):
        targets.get("vulcan")


def test_a_target_this_machine_lacks_is_the_machines_error() -> None:
    lacking = Target("nowhere", (), None, "there is no such device.")
    assert not devices.available(lacking)
    with pytest.raises(
        MachineError, match=r"nowhere: modules compile but cannot run here"
    ) as caught:
        devices.require(lacking)
    assert caught.value.exit_code == 3


def test_a_package_adds_a_target_by_entry_point(offered: list[EntryPoint]) -> None:
    offered.append(EntryPoint("mine", "tests.lowering.targets.test_targets:MINE", targets.GROUP))
    assert "mine" in targets.names()
    assert targets.get("mine").missing == MINE.missing


def test_an_entry_point_that_is_no_target_is_refused_by_its_place(
    offered: list[EntryPoint],
) -> None:
    offered.append(EntryPoint("mine", "trinity.lowering.targets.targets:GROUP", targets.GROUP))
    with pytest.raises(
        PluginError,
        match=r"'trinity\.lowering\.targets\.targets:GROUP' is of type str, not a trinity",
    ):
        targets.get("mine")


def test_a_clash_of_names_names_both_owners(offered: list[EntryPoint]) -> None:
    offered.append(EntryPoint("cuda", "other.package:target", targets.GROUP))
    with pytest.raises(ConfigError, match=r"by trinity .* and by .*\(other\.package:target\)"):
        targets.get("cuda")
