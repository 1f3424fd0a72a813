import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.harness.tiny import BigramEngine
from trinity.harness.latency import energy


def _zone(folder: Path, zone: str, name: str, joules: float) -> Path:
    place = folder / zone
    place.mkdir(parents=True)
    (place / "name").write_text(name, encoding="utf-8")
    (place / "energy_uj").write_text(f"{round(1e6 * joules)}\n", encoding="utf-8")
    (place / "max_energy_range_uj").write_text("1000000000", encoding="utf-8")
    return place


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", "package-0", 5)
    _zone(tmp_path, "intel-rapl:1", "package-1", 7)
    _zone(tmp_path, "intel-rapl:0:0", "core", 3)
    _zone(tmp_path, "intel-rapl:2", "psys", 100)
    found = energy._rapl(tmp_path)
    assert isinstance(found, energy.Counter)
    assert found.joules() == pytest.approx(12)
    assert found.wraps_at_j == pytest.approx(1000)


def test_a_counter_that_starts_again_is_read_on() -> None:
    found = energy.Counter(lambda: 0.0, "x", wraps_at_j=100.0)
    assert found.between(10, 30) == 20
    assert found.between(90, 5) == 15


def test_joules_are_those_of_the_tokens_between_two_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(energy, "LEAST_S", 0.01)
    spent = 0.0

    def decode() -> int:
        nonlocal spent
        spent += 6.0
        return 3

    source = energy.Counter(lambda: spent, "a counter")
    m = energy.per_token(BigramEngine(), "energy", decode, source)
    assert (m.value, m.unit, len(m.samples)) == (pytest.approx(2.0), "J/token", energy.REPEATS)
    assert m.details["counter"] == "a counter"


def test_without_a_counter_there_is_no_number_but_a_reason(tmp_path: Path) -> None:
    said = energy._rapl(tmp_path)
    assert isinstance(said, str)

    def never() -> int:
        raise AssertionError

    m = energy.per_token(BigramEngine(), "energy", never, said)
    assert (m.value, m.samples) == (None, [])
    assert m.reason is not None
    assert "no package of RAPL" in m.reason


def test_a_counter_for_root_alone_is_said_so(tmp_path: Path) -> None:
    (_zone(tmp_path, "intel-rapl:0", "package-0", 5) / "energy_uj").unlink()
    said = energy._rapl(tmp_path)
    assert isinstance(said, str)
    assert "root alone" in said


def test_the_gpu_that_counts_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where CUDA_VISIBLE_DEVICES makes another one the first."""
    joules = {"GPU-a": 1000.0, "GPU-b": 7000.0}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: ["GPU-a", "GPU-b"][index],
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: joules[device],
        NVMLError=OSError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="b")
    )
    found = energy.counter()
    assert isinstance(found, energy.Counter)
    assert found.joules() == pytest.approx(7.0)
