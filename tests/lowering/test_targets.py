"""Targets: what exists, what is refused, and how others add theirs."""

from importlib.metadata import EntryPoint

import pytest

from trinity.lowering import targets
from trinity.lowering.targets import Finder, Target
from trinity.methods.errors import ConfigError, MachineError

MINE = Target("mine", (), None, "mine is not here.")


def offered(*points: EntryPoint) -> Finder:
    """A stand-in for the installed packages' entry points."""
    return lambda: points


def test_the_cpu_is_always_there() -> None:
    assert targets.get("llvm-cpu").available()
    assert targets.get("llvm-cpu").require() == "local-task"


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'vulcan' is unknown; there is .*Did you mean vulkan"):
        targets.get("vulcan")


def test_a_target_this_machine_lacks_is_the_machines_error() -> None:
    lacking = Target("nowhere", (), None, "there is no such device.")
    assert not lacking.available()
    with pytest.raises(
        MachineError, match=r"nowhere: modules compile but cannot run here"
    ) as caught:
        lacking.require()
    assert caught.value.exit_code == 3


def test_a_package_adds_a_target_by_entry_point() -> None:
    point = EntryPoint("mine", "tests.lowering.test_targets:MINE", targets.GROUP)
    assert "mine" in targets.names(offered(point))
    assert targets.get("mine", offered(point)).missing == MINE.missing


def test_an_entry_point_that_is_no_target_is_refused_by_its_place() -> None:
    point = EntryPoint("mine", "trinity.lowering.targets:GROUP", targets.GROUP)
    with pytest.raises(
        ConfigError, match=r"trinity\.lowering\.targets:GROUP is str, not a lowering"
    ):
        targets.get("mine", offered(point))


def test_a_clash_of_names_names_both_owners() -> None:
    point = EntryPoint("cuda", "other.package:target", targets.GROUP)
    with pytest.raises(ConfigError, match=r"both trinity and other\.package:target"):
        targets.get("cuda", offered(point))
