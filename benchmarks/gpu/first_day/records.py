"""Rows as records: the JSON files that `trinity table --sql` and all else here reads.

A record for the single products of each target, and one for each decoded model.  What of a record
was known when the bundle was built comes with it.
"""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.first_day.rows import Row


def of(
    manifest: Mapping[str, Any],
    environment: Mapping[str, Any],
    found: Sequence[tuple[int, list[Row]]],
) -> list[dict[str, Any]]:
    """The records of some cases.  found: numbers of cases, and their rows"""
    made: dict[str, dict[str, Any]] = {}
    around = {**environment, "commit": manifest["commit"], "dirty": manifest["dirty"]}
    around["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for number, rows in found:
        case = manifest["cases"][number]
        name = case["record"]
        if name not in made:
            made[name] = copy.deepcopy(manifest["records"][name])
            made[name] |= {"date": around["time"][:10], "measurements": []}
            made[name]["environment"] = around
        made[name]["measurements"] += rows
        if made[name]["lowering"] and case["kind"] == "decode":
            made[name]["lowering"]["logit_errors"] = next(
                (row["details"]["errors"] for row in rows if "errors" in row["details"]), {}
            )
    return list(made.values())


def write(made: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write them where a results folder has its records; a file that is there is kept."""
    paths = []
    for record in made:
        folder = out / "v1" / record["model"]["label"] / record["recipe"]["name"]
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{record['environment']['machine']}-{record['date']}"
        names = [stem, *(f"{stem}-{serial}" for serial in range(2, 1000))]
        path = next(p for name in names if not (p := folder / f"{name}.json").exists())
        path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
        paths.append(path)
    return paths
