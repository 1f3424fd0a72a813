"""Is a difference between two implementations a shift?  Whole models of several calibration seeds.

    python benchmarks/conformance/seeds.py FOLDER [--seeds N ...] [--also RECORD] [--package P]
        [--case C] [--json FILE]

Runs in an environment that has the project.  FOLDER has one folder a seed, seed-0, seed-1, ...,
each made by `given.py FOLDER/seed-N --seed N --no-layers` and then by the package's `*_weights.py
FOLDER/seed-N CASE`.  `--also` adds the seed that a record of `compare.py` holds.  Seeds are the
samples: a seed's two models share their calibration tokens, and what rounding does to either is a
part of the spread.
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
from trinity.harness.store.stages import read_json, write_json
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


def measured(folder: Path, package: str, case: str, seeds: list[int]) -> list[dict[str, Any]]:
    """Both models of every seed."""
    found = []
    folders = [folder / f"seed-{seed}" for seed in seeds]
    for seed, of in zip(seeds, folders, strict=True):  # before minutes of work, not at the last
        if not (of / package / "versions.txt").is_file():
            msg = (
                f"{of}: holds no models of {package}. Make them with given.py (--seed {seed} "
                f"--no-layers) and {package}_weights.py {of} {case}."
            )
            raise ConfigError(msg)
    for seed, of in zip(seeds, folders, strict=True):
        print(f"{package} {case}: seed {seed}", file=sys.stderr)
        one, _ = models(of, package, case, seed)
        drawn = run_of(case, seed).draw_calibration()
        versions = (of / package / "versions.txt").read_text(encoding="utf-8").split("\n")[:-1]
        calibration = drawn[1] if drawn else None
        found.append({"seed": seed, "calibration": calibration, "versions": versions, **one})
    return found


def held(path: Path, package: str, case: str) -> dict[str, Any]:
    """The same of the seed that a record of `compare.py` holds, and which record that is."""
    record = read_json(path)
    one = record["models"][f"{package} {case}"]
    return {
        "seed": record["calibration"]["seed"],
        "record": path.name,
        "calibration": record["calibration"],
        "versions": record["versions"][package],
        **{key: one[key] for key in ("same", "ours", "theirs")},
    }


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratio over seeds of every measurement, by name."""
    outcomes = {}
    for at, name in enumerate(m["name"] for m in found[0]["ours"]):
        ours, theirs = ([one[who][at]["value"] for one in found] for who in ("ours", "theirs"))
        outcomes[name] = mean_log_ratio(ours, theirs)
    return outcomes


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
    for which, outcomes in found["outcomes"].items():
        for name, outcome in outcomes.items():
            low, high = outcome["interval"]
            lines.append(
                f"| {which} | {name} | | | {outcome['ratio']:.3f} [{low:.3f}, {high:.3f}] "
                f"(p = {outcome['p_value']:.2g}) |"
            )
    return "\n".join(lines)


def main() -> int:
    """A Markdown table on stdout, a record in --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--also", type=Path, metavar="RECORD", help="one more seed, of compare.py")
    parser.add_argument("--package", choices=PACKAGES, default="llmcompressor")
    parser.add_argument("--case", choices=CASES, default="sparsegpt-2of4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds: an interval over seeds needs at least 2")
    hush_libraries()
    torch.set_grad_enabled(False)
    try:
        fresh = measured(options.folder, options.package, options.case, options.seeds)
    except TrinityError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    also = [held(options.also, options.package, options.case)] if options.also else []
    found = {
        "seeds": [*also, *fresh],
        # A seed whose difference was the reason to ask is no fair sample: without it, and with it.
        "outcomes": {"these seeds": together(fresh)}
        | ({"with the record's": together([*also, *fresh])} if also else {}),
    }
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
