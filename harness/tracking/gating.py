"""A whole gate: read the policy, run its recipes, and judge their records against a baseline."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trinity.harness.runs import requests
from trinity.harness.store.writing import check_writable
from trinity.harness.terminal.progress import Reporter
from trinity.harness.tracking import at_commit, gate_runs, judging, policy, references
from trinity.harness.tracking.gate_runs import Runner
from trinity.harness.tracking.judging import Broken, Gate, Ran
from trinity.harness.tracking.references import Reference

RUN = "run:"  # before a commit whose recipes are run now
BASELINE = "baseline"  # folder of their records, below that of the gate


def gate(
    place: Path, baseline: str, ours: str | None, out: Path, quiet: bool, reporter: Reporter
) -> Gate:
    """place: of the policy   baseline: as `references.resolve` takes it, or 'run:' and a commit
    ours: a record or folder of records to judge; None runs the recipes, with records under `out`
    """
    asked = policy.read(place)
    folder = place.resolve().parent
    # What is wrong in one recipe costs no run of another.
    named = [(requests.run(path, []).name, path) for path in policy.recipes(asked, folder)]
    check_writable(out)
    runner = Runner(out, asked.minutes, quiet, reporter)
    if baseline.startswith(RUN):
        reference = _run_at(baseline.removeprefix(RUN), folder, named, runner)
    else:
        reference = references.resolve(baseline, folder / asked.records)
    if ours is None:
        runs = runner.run_all(named)
    else:
        runs = gate_runs.of_folder(ours, [name for name, _ in named])
    return judging.judge(asked, runs, reference)


def _run_at(ref: str, folder: Path, named: Sequence[tuple[str, Path]], runner: Runner) -> Reference:
    """The same recipes, run with the project as it is at another commit, on this machine."""
    with at_commit.checked_out(ref, folder) as checkout:
        runner.reporter.say(f"baseline: the project at {ref} ({checkout.commit[:12]})")
        there = replace(
            runner,
            out=runner.out / BASELINE,
            python=checkout.python,
            folder=checkout.folder,
        )
        runs = there.run_all(named)
    label = f"{ref} ({checkout.commit[:12]}), run here"
    broken = {run.recipe: run.why for run in runs if isinstance(run, Broken)}
    return Reference(label, [run.kept for run in runs if isinstance(run, Ran)], broken=broken)
