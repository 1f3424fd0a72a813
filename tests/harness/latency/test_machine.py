import resource
from types import SimpleNamespace

import pytest

from trinity.harness.latency import machine


def test_pages_that_were_read_from_disk_meanwhile_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter([5, 12])
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_majflt=next(counts)))
    with machine.watched() as seen:
        pass
    assert seen["major_faults"] == 7
