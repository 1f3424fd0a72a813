"""The command there: every case of a bundle in processes of their own, and records of all rows.

    python first_day.pyz                      # beside the folders of the bundle
    python first_day.pyz --targets vulkan --kinds check decode

Nothing stops it: a case that is wrong, raises, crashes its process or takes too long is a row that
says so.  A target without a device is a row too.
"""

import argparse
import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.first_day import records
from benchmarks.gpu.first_day.running import Runner
from benchmarks.gpu.first_day.watching import Watch

KINDS = ("check", "decode", "layer", "alone")


def main(arguments: list[str] | None = None) -> int:
    """Run, print a line a row, and write.  -> 0, or 1 if a row failed or not all ran"""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--worker"]:
        from benchmarks.gpu.first_day import worker

        return worker.main(given[1:])
    options = parse(given)
    manifest = json.loads((options.bundle / "bundle.json").read_text("utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    with Watch() as watch, (options.out / "rows.jsonl").open("w", encoding="utf-8") as lines:

        def note(case: dict[str, Any], rows: list[dict[str, Any]]) -> None:
            for row in rows:
                lines.write(json.dumps({"target": case["target"], "row": row}) + "\n")
                lines.flush()
                print(line_of(row), flush=True)

        runner = Runner(options, manifest, watch)
        start = time.time()
        found, stopped = [], False
        try:
            end_when_told()
            for group in groups(manifest, options):
                for number, rows in runner.run(group):
                    found.append((number, rows))  # before it is told: an interruption loses none
                    note(manifest["cases"][number], rows)
        except KeyboardInterrupt as end:
            print(f"{end or 'interrupted'}: records hold what was done before", flush=True)
            stopped = True
    made = records.of(manifest, runner.environment, found)
    for path in records.write(made, options.out):
        print(f"written: {path}")
    counts = Counter("failed" if row["reason"] else "good" for _, rows in found for row in rows)
    print(f"{counts['good']} rows, {counts['failed']} failed, in {time.time() - start:.0f} s")
    return 1 if counts["failed"] or stopped else 0


def end_when_told() -> None:
    """From now on SIGTERM, which a machine that is taken back sends first, is Ctrl-C.

    A second one is ignored: the records are being written.
    """

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, end)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    here = Path(__file__)  # in first_day.pyz, whose folder is the bundle
    bundle = next((path.parent for path in here.parents if path.suffix == ".pyz"), Path.cwd())
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="first_day.pyz", description=about)
    parser.add_argument("--bundle", type=Path, default=bundle, help="the folder of bundle.json")
    parser.add_argument("--out", type=Path, default=Path("first-day-results"))
    parser.add_argument("--targets", nargs="+", help="all of the bundle's if left out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=20, help="of everything that is timed")
    parser.add_argument("--rotate", type=int, default=512 << 20, help="bytes of copies of a weight")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one case")
    return parser.parse_args(arguments)


def groups(manifest: dict[str, Any], options: argparse.Namespace) -> list[list[int]]:
    """The numbers of the cases to run, those in front of which one probe stands together."""
    found: dict[str, list[int]] = {}
    for number, case in enumerate(manifest["cases"]):
        wanted = case["kind"] in options.kinds or case["kind"] == "device"
        wanted |= case["kind"] == "bandwidth" and "alone" in options.kinds
        if wanted and (options.targets is None or case["target"] in options.targets):
            name = "alone" if case["kind"] in ("bandwidth", "alone") else case["target"]
            found.setdefault(f"{case['target']} {name}", []).append(number)
    return list(found.values())


def line_of(row: dict[str, Any]) -> str:
    """A row on the screen."""
    said = row["reason"] or f"{row['value']:.3g} {row['unit'] if row['unit'] != '1' else ''}"
    mark = "FAILED" if row["reason"] else "      "
    if row["interval"]:
        said += f"[{row['interval']['low']:.3g}, {row['interval']['high']:.3g}]"
    return f"{mark} {row['name']}, {row['engine']}, {row['metric']}: {said}"
