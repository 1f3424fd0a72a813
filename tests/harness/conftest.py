"""Fixtures of the harness tests."""

import pytest

from tests.hub.fixtures import hub  # noqa: F401  a fixture
from trinity.harness.latency import ceilings


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine can do at most is measured on a buffer and matrices of a few bytes."""
    monkeypatch.setattr(ceilings, "_BUFFER", 1 << 16)
    monkeypatch.setattr(ceilings, "_SIDES", (4, 8))
    monkeypatch.setattr(ceilings, "_LEAST_S", 0.0)
