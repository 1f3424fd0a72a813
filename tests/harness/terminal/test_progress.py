"""harness/terminal/progress.py: lines where there is no terminal."""

import time

import pytest

from trinity.harness.terminal.progress import Reporter


def test_things_that_are_counted_have_a_line_at_every_fifth_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    one_more = Reporter().counter("tuning", 10)
    for _ in range(12):  # more than was said are not counted
        one_more()
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "tuning: 2/10, about 4 minutes left",
        "tuning: 4/10, about 3 minutes left",
        "tuning: 6/10, about 2 minutes left",
        "tuning: 8/10, about 60 s left",
        "tuning: 10/10",
    ]
