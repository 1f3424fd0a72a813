"""Run every recipe of this artifact again, and compare with what its records hold.

    python reproduce.py [--out again] [--only NAME ...]

Needs Trinity alone (README.md says how to install it).  Ends with 0 if all that is judged agrees,
with 1 if something does not, with 2 if a recipe could not be run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run, compare, print a line a number."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("again"), help="folder for new records")
    parser.add_argument("--only", nargs="*", help="recipes, by name; all if none is given")
    asked = parser.parse_args()
    expected = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    names = asked.only or sorted({entry["run"] for entry in expected})
    wrong = broken = 0
    for name in names:
        record = run(HERE / "recipes" / f"{name}.yaml", asked.out)
        if record is None:
            broken += 1
            continue
        for entry in (e for e in expected if e["run"] == name):
            verdict, value = judge(entry, record)
            wrong += verdict != "agrees"
            what = f"{name}: {entry['name']} {entry['metric']} ({entry['engine']})"
            print(f"{verdict:8} {what}: {value}, recorded {entry['value']} [{entry['rule']}]")
    print(f"{len(names) - broken} of {len(names)} recipes run, {wrong} numbers do not agree")
    return 2 if broken else 1 if wrong else 0


def run(recipe: Path, out: Path) -> dict[str, Any] | None:
    """The record of a recipe that was run now; None if it could not be."""
    command = [sys.executable, "-m", "trinity.harness.cli", "run", str(recipe)]
    done = subprocess.run(
        [*command, "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        print(f"broken   {recipe.stem}: trinity run ended with {done.returncode}")
        return None
    record: dict[str, Any] = json.loads(
        Path(json.loads(done.stdout)["record"]).read_text(encoding="utf-8")
    )
    return record


def judge(entry: dict[str, Any], record: dict[str, Any]) -> tuple[str, object]:
    """Whether a number agrees with what is expected, and the number."""
    if entry["name"] == "checkpoint":
        value = record["checkpoint"]["bits_per_weight"]
        return ("agrees" if value == entry["value"] else "differs"), value
    measured = measured_again(entry, record)
    value = measured and measured["value"]
    if measured is None or value is None:
        return "missing", None
    if entry["rule"] == "exact":
        return ("agrees" if value == entry["value"] else "differs"), value
    low = high = value
    if entry["rule"] == "ratio" and measured.get("interval"):
        # A speed is noisy both times.
        low, high = measured["interval"]["low"], measured["interval"]["high"]
    agrees = low <= entry["high"] and high >= entry["low"]
    return ("agrees" if agrees else "differs"), value


def measured_again(entry: dict[str, Any], record: dict[str, Any]) -> dict[str, Any] | None:
    """What a record holds of the number that an expected one is about."""
    key = (entry["name"], entry["metric"], entry["engine"])
    return next(
        (m for m in record["measurements"] if (m["name"], m["metric"], m["engine"]) == key), None
    )


if __name__ == "__main__":
    raise SystemExit(main())
