"""The doctor answers whatever is broken, and says what to run."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from trinity.harness.hub.failures import Failure, Reason
from trinity.harness.installed import doctor
from trinity.harness.installed.doctor import Answer
from trinity.harness.repro import availability
from trinity.methods import plugins


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Failure(Reason.NETWORK, "no route")
    monkeypatch.setattr(availability, "hub_failure", lambda: silent)


def _found(section: str, name: str) -> Answer:
    return next(f.answer for f in doctor.diagnose() if (f.section, f.name) == (section, name))


def test_every_section_is_answered_and_every_lack_has_a_remedy() -> None:
    found = doctor.diagnose()
    assert {f.section for f in found} == set(doctor.SECTIONS) - {"plugins"}
    assert all(f.answer.remedy for f in found if f.answer.lacks)
    assert all(f.answer.value for f in found)


def test_a_device_that_fails_to_be_asked_for_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> bool:
        msg = "vulkan-1 not found"
        raise ValueError(msg)

    monkeypatch.setattr("trinity.lowering.module.devices.has_device", broken)
    found = _found("targets", "vulkan")
    assert found.lacks
    assert "vulkan-1 not found" in found.value


def test_a_broken_torch_leaves_the_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {(f.section, f.name): f.answer for f in doctor.diagnose()}
    torch = found["packages", "torch"]
    assert torch.lacks
    assert torch.remedy == doctor.REINSTALL
    assert "-c constraints.txt ." in torch.remedy
    assert found["machine", "GPU"].lacks
    assert not found["machine", "memory"].lacks
    assert not found["stages", "TRINITY_CACHE"].lacks


@pytest.mark.parametrize("value", ["", "~nobody-of-that-name/x", "/proc/nothing/here"])
def test_a_store_that_cannot_be_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRINITY_CACHE", value)
    found = _found("stages", "TRINITY_CACHE")
    assert found.lacks
    assert "TRINITY_CACHE" in found.remedy


def test_data_that_are_no_folder_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRINITY_DATA_DIR", str(tmp_path / "absent"))
    assert "is not a folder" in _found("data", "TRINITY_DATA_DIR").value
    assert _found("data", "text c4").lacks


def test_a_section_that_cannot_even_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise RuntimeError("a target's package is broken")

    monkeypatch.setattr("trinity.lowering.targets.targets.names", broken)
    found = _found("targets", "targets")
    assert found.lacks
    assert found.remedy
    assert "a target's package is broken" in found.value


def test_a_broken_plugin_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints([EntryPoint("mine", "no_such_module:METHOD", "trinity.methods")])
    monkeypatch.setattr(plugins, "installed", lambda group: entries.select(group=group))
    found = _found("plugins", "methods mine")
    assert found.lacks
    assert "no_such_module" in found.value
