"""The table of processor times in docs/diary/kernel-speed.md is what the committed records say."""

import json
from pathlib import Path

from benchmarks import kernel_cpu_time

ROOT = Path(__file__).parents[2]


def test_the_page_holds_the_table_of_the_committed_records() -> None:
    paths = [ROOT / "results" / "notes" / f"kernel-cpu-time-{rows}-rows.json" for rows in (1, 16)]
    table = kernel_cpu_time.markdown([json.loads(path.read_text("utf-8")) for path in paths])
    assert table.count("\n") > 5
    assert table in (ROOT / "docs" / "diary" / "kernel-speed.md").read_text("utf-8")
