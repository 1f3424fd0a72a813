"""The speed table of docs/diary/kernel-speed.md is what the committed records say."""

import json
from pathlib import Path

import pytest

from benchmarks import kernel_table

KINDS = [
    "kernel-speed-*.json",
    "kernels-avx2-*.json",
    "kernels-forced-avx2-*.json",
    "kernels-forced-avx-vnni-*.json",
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_holds_the_tables_of_the_committed_records(kind: str) -> None:
    paths = sorted((ROOT / "results" / "notes").glob(kind))
    table = kernel_table.markdown([json.loads(path.read_text("utf-8")) for path in paths])
    assert table.count("\n") > 10
    assert table in (ROOT / "docs" / "diary" / "kernel-speed.md").read_text("utf-8")


def test_what_was_not_timed_is_an_empty_cell() -> None:
    def measured(engine: str, rows: int, metric: str, value: float) -> dict[str, object]:
        details = {"shape": [8, 4], "rows": rows, "format": "int4", "read_bytes": 2e6}
        return {
            "name": f"layer {rows}",
            "engine": engine,
            "metric": metric,
            "value": value,
            "details": details | {"floor_share": 0.5},
            "interval": {"low": value - 1, "high": value + 1},
        }

    found = [measured("iree", rows, "seconds", 1.0) for rows in (1, 16)]
    found += [measured("iree", rows, "speedup", 2.0 + rows) for rows in (1, 16)]
    found += [measured("torch-int4", 1, "seconds", 1.0), measured("torch-int4", 1, "speedup", 9.0)]
    assert kernel_table.markdown([{"measurements": found}]).splitlines()[2:] == [
        "| 8 x 4 | int4 | 2.0 MB | 3.00x [2.00, 4.00] | 50% | 18.00x [17.00, 19.00] |",
        "| 8 x 4 | torch's own int4 kernel | 2.0 MB | 9.00x [8.00, 10.00] | 50% |  |",
    ]
