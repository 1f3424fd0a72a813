"""Is a difference between two implementations a shift?  Whole models of several calibration seeds.

    python benchmarks/conformance/seeds.py FOLDER [--seeds 5] [--package P] [--case C] [--json FILE]

Runs in an environment that has the project.  FOLDER has one folder a seed, seed-0, seed-1, ...,
each made by `given.py FOLDER/seed-N --seed N --no-layers` and then by the package's `*_weights.py
FOLDER/seed-N CASE`.  Seeds are the samples: a seed's two models share their calibration tokens, and
what rounding does to either is a part of the spread.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from compare import PACKAGES, models
from given import run_of
from scipy.special import stdtr, stdtrit

from trinity.harness.records.environment import environment
from trinity.harness.store.stages import write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.methods.errors import ConfigError, TrinityError


def mean_log_ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ours to theirs, as the mean over seeds of log ratios: Student's 95% interval and p-value."""
    logs = [math.log(mine / other) for mine, other in zip(ours, theirs, strict=True)]
    mean, freedom = statistics.fmean(logs), len(logs) - 1
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    half = float(stdtrit(freedom, 0.975)) * error
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error)) if error else float(not mean)
    return {
        "log_ratios": logs,
        "ratio": math.exp(mean),
        "interval": [math.exp(mean - half), math.exp(mean + half)],
        "p_value": p_value,
    }


def measure(folder: Path, package: str, case: str, seeds: int) -> dict[str, Any]:
    """Both models of every seed, and what they say together."""
    found, versions = [], set()
    folders = [folder / f"seed-{seed}" for seed in range(seeds)]
    for seed, of in enumerate(folders):  # minutes of work must not end at the last one
        if not (of / package / "versions.txt").is_file():
            msg = (
                f"{of}: holds no models of {package}. Make them with given.py (--seed {seed} "
                f"--no-layers) and {package}_weights.py {of} {case}."
            )
            raise ConfigError(msg)
    for seed, of in enumerate(folders):
        print(f"{package} {case}: seed {seed}", file=sys.stderr)
        one, _ = models(of, package, case, seed)
        drawn = run_of(case, seed).draw_calibration()
        found.append({"seed": seed, "calibration": drawn[1] if drawn else None, **one})
        versions.add((of / package / "versions.txt").read_text(encoding="utf-8"))
    (same,) = versions  # seeds of two versions are no sample of either
    values = {who: [[m["value"] for m in one[who]] for one in found] for who in ("ours", "theirs")}
    names = [m["name"] for m in found[0]["ours"]]
    return {
        "versions": same.split("\n")[:-1],
        "seeds": found,
        "outcomes": {
            name: mean_log_ratio(
                [row[at] for row in values["ours"]], [row[at] for row in values["theirs"]]
            )
            for at, name in enumerate(names)
        },
    }


def table(found: dict[str, Any]) -> str:
    """A Markdown table: a row a seed, and the ratio over seeds."""
    lines = ["| seed | measured | theirs | ours | ours to theirs |", "|---:|---|---:|---:|---:|"]
    for one in found["seeds"]:
        for mine, other in zip(one["ours"], one["theirs"], strict=True):
            ratio = mine["value"] / other["value"]
            lines.append(
                f"| {one['seed']} | {mine['name']} | {other['value']:.1f} | {mine['value']:.1f} "
                f"| {ratio:.3f} |"
            )
    for name, outcome in found["outcomes"].items():
        low, high = outcome["interval"]
        lines.append(
            f"| all | {name} | | | {outcome['ratio']:.3f} [{low:.3f}, {high:.3f}] "
            f"(p = {outcome['p_value']:.2g}) |"
        )
    return "\n".join(lines)


def main() -> int:
    """A Markdown table on stdout, a record in --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--package", choices=PACKAGES, default="llmcompressor")
    parser.add_argument("--case", choices=CASES, default="sparsegpt-2of4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: an interval over seeds needs at least 2")
    hush_libraries()
    torch.set_grad_enabled(False)
    try:
        found = measure(options.folder, options.package, options.case, options.seeds)
    except TrinityError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(table(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "schema": "conformance-seeds/1",
            "command": " ".join(["python", "benchmarks/conformance/seeds.py", *sys.argv[1:]]),
            "case": {options.case: CASES[options.case]},
            "package": options.package,
            **found,
            "environment": environment(),
        }
        write_json(options.json, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
