import time

import pytest

from tests.harness.tracking.planted import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In place of the one that everything is timed with."""
    found = Clock()
    monkeypatch.setattr(time, "perf_counter", found)
    return found
