"""Fixtures of the harness tests."""

import pytest

from tests.harness import tiny
from tests.hub.fixtures import hub  # noqa: F401  a fixture
from trinity.harness.latency import ceilings


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine can do at most is measured on a buffer and matrices of a few bytes."""
    for name, value in tiny.CEILINGS.items():
        monkeypatch.setattr(ceilings, name, value)
