"""harness/hub/downloads.py: bytes of a download as megabytes that end where they should."""

import pytest

from trinity.harness.hub import downloads
from trinity.harness.terminal.progress import Reporter

STEP = 100_000


@pytest.mark.parametrize("size", [1, 999_999, 1_000_000, 10_200_000, 10_600_000])
@pytest.mark.parametrize("known", [True, False])
def test_a_download_ends_at_its_whole_once(
    monkeypatch: pytest.MonkeyPatch, size: int, known: bool
) -> None:
    steps: list[tuple[int, int]] = []
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "step", lambda _, done, total: steps.append((done, total)))
    bar = downloads.bars("file", size if known else None, reporter)(unit="B", total=size)
    for start in range(0, size, STEP):
        bar.update(min(STEP, size - start))
    bar.update(0)
    totals = {total for _, total in steps}
    assert steps[-1] == (max(totals), max(totals))
    assert steps.count(steps[-1]) == 1
    assert len(totals) == 1
