"""What tests of the hub share: a store, a listener, and no waiting."""

from pathlib import Path

import pytest

from tests.harness.hub.asking import Listener
from trinity.harness.hub import failures
from trinity.harness.store.stages import StageStore


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "store")


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(failures.time, "sleep", waited.append)
    return waited
