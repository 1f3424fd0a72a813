"""What an artifact says in words: README, checklist, licences, citation, and a table of numbers."""

import csv
import io
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

import yaml

from trinity.harness.artifact.expected import RULES, names_of
from trinity.harness.artifact.licences import of_data, of_models
from trinity.harness.artifact.lock import beside
from trinity.harness.figures.shown import Shown, key_of
from trinity.harness.records.record import Record
from trinity.harness.report.numbers import interval_text, value_text
from trinity.harness.report.verdicts import outcome_text
from trinity.harness.statistics.paired import DRAWS

YOURS = "(yours to fill in)"
COLUMNS = (
    *("run", "model", "name", "metric", "engine", "path", "value", "shown", "interval"),
    *("low", "high", "samples", "against_dense", "record"),
)


def readme(runs: Sequence[Shown], spent: Sequence[dict[str, Any]]) -> str:
    """The headings of ACM's and MLSys's artifact appendices, filled in."""
    newest = _newest(runs).record
    e = newest.environment
    stored = sum(sum(run.record.checkpoint.stored_bytes.values()) for run in runs)
    steps = sorted({run.steps for run in runs})
    targets = sorted({run.record.lowering.target for run in runs if run.record.lowering})
    return _filled(
        "README.md.txt",
        models=", ".join(sorted({run.model for run in runs})),
        count=len(runs),
        yours=YOURS,
        steps="; ".join(steps),
        compilation=_compilation(newest, targets),
        sources="; ".join(f"`{model}`" for model in of_models(runs)),
        data=", ".join(of_data(runs)) or "none",
        platform=e.get("platform"),
        python=e.get("python"),
        hardware=_hardware(newest),
        metrics=", ".join(sorted({m.metric for run in runs for m in run.record.measurements})),
        stored=f"{stored / 2**30:.1f}",
        time=_time(spent),
        read_from=_sources(runs),
        beside=_beside(runs),
        one=names_of(runs)[runs[-1].path],
        rules=chr(10).join(f"- `{name}`: {rule}." for name, rule in RULES.items()),
    )


def checklist(runs: Sequence[Shown], spent: Sequence[dict[str, Any]]) -> str:
    """The questions that a machine can answer."""
    methods = sorted(
        {m.interval.method for run in runs for m in run.record.measurements if m.interval}
    )
    seeds = sorted({_seeds(run.record) for run in runs})
    tests = sorted({o.test for run in runs for o in run.outcomes.values() if o.p_adjusted})
    cost = "\n".join(
        f"| {x['status']} | {x['runs']} | {x['wall_h']} | {x['cpu_h']} | {x['peak_memory_gib']} |"
        for x in spent
    )
    dirty = [run.name for run in runs if run.record.environment.get("dirty")]
    return _filled(
        "CHECKLIST.md.txt",
        methods="; ".join(methods) or "none",
        tests="Against the dense model on the same samples: " + "; ".join(tests)
        if tests
        else "There was no dense run to compare with",
        draws=DRAWS,
        seeds=", ".join(seeds),
        machines="; ".join(sorted({_hardware(run.record) for run in runs})),
        cost=_cost_table(cost),
        commits=", ".join(sorted({str(run.record.environment.get("commit")) for run in runs})),
        dirty=_dirty(dirty),
    )


def licences(runs: Sequence[Shown]) -> str:
    """Of models and data, with where the data were read."""
    models = "\n".join(f"| `{name}` | {licence} |" for name, licence in of_models(runs).items())
    data = "\n".join(
        f"| {n} | {licence} | {where} |" for n, (licence, where) in of_data(runs).items()
    )
    return _filled(
        "LICENCES.md.txt",
        models=models,
        data=data,
    )


def citation(runs: Sequence[Shown]) -> str:
    """CITATION.cff of the artifact; the authors are the reader's to name."""
    newest = _newest(runs).record
    packages = newest.environment.get("packages") or {}
    data = {
        "cff-version": "1.2.0",
        "type": "dataset",
        "title": f"Artifact: compressed models of {', '.join(sorted({r.model for r in runs}))}",
        "message": "If you use these results, please cite them, and the papers of the methods.",
        "authors": [{"name": "Authors of the artifact " + YOURS}],
        "date-released": newest.date,
        "license": "Apache-2.0",
        "references": [
            {
                "type": "software",
                "title": "Trinity",
                "authors": [{"name": "Trinity contributors"}],
                "version": str(packages.get("compression-trinity")),
                "commit": str(newest.environment.get("commit")),
            }
        ],
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def table(runs: Sequence[Shown]) -> str:
    """A line a measurement."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        for m in run.record.measurements:
            low, high = (m.interval.low, m.interval.high) if m.interval else ("", "")
            shown = [value_text(m), interval_text(m), low, high, len(m.samples)]
            said = outcome_text(run.outcomes.get(key_of(m))) or run.verdict(m)
            value = "" if m.value is None else m.value
            writer.writerow(
                [
                    run.name,
                    run.model,
                    m.name,
                    m.metric,
                    m.engine,
                    m.path,
                    value,
                    *shown,
                    said,
                    run.path,
                ]
            )
    return stream.getvalue()


def _filled(name: str, **words: object) -> str:
    text = resources.files("trinity.harness.artifact").joinpath(name).read_text(encoding="utf-8")
    return Template(text).substitute(words)


def _newest(runs: Sequence[Shown]) -> Shown:
    return max(runs, key=lambda run: (run.record.date, run.path))


def _hardware(found: Record) -> str:
    e = found.environment
    memory = (e.get("memory_bytes") or 0) / 2**30
    gpu = f", {e['gpu']}" if e.get("gpu") else ", no GPU"
    cores = f"{e.get('cores')} cores, {e.get('threads')} threads"
    return f"{e.get('cpu')}, {cores}, {memory:.0f} GiB{gpu}"


def _compilation(found: Record, targets: Sequence[str]) -> str:
    if not targets:
        return "none: PyTorch alone"
    packages = found.environment.get("packages") or {}
    compiler = packages.get("iree-base-compiler")
    return (
        f"torch-mlir {packages.get('torch-mlir')} and IREE {compiler}, target {', '.join(targets)}"
    )


def _time(spent: Sequence[dict[str, Any]]) -> str:
    finished = next((x for x in spent if x["status"] == "finished"), None)
    if finished is None:
        return "not recorded: these records are older than the count of what runs cost"
    return f"{finished['wall_h']} hours for the {finished['runs']} runs that computed something"


def _cost_table(rows: str) -> str:
    if not rows:
        return "Not recorded: `results/attempts/` is empty; these records are older than it."
    head = "| how they ended | runs | hours | processor hours | peak memory, GiB |"
    return f"{head}\n|---|---:|---:|---:|---:|\n{rows}"


def _dirty(names: Sequence[str]) -> str:
    if not names:
        return "No."
    return f"Yes, for {len(names)} runs: {', '.join(names)}."


def _seeds(found: Record) -> str:
    calibration = found.recipe.get("calibration") or {}
    return str(list(calibration.get("seeds") or [calibration.get("seed", "none")]))


def _beside(runs: Sequence[Shown]) -> str:
    """Lines that install what is no dependency of Trinity, and whose own are not wanted."""
    return "".join(f"pip install --no-deps {name}\n" for name in beside(runs))


def _sources(runs: Sequence[Shown]) -> str:
    lines = {f"- model `{r.record.model.id}`, sha256 {r.record.model.sha256}" for r in runs}
    lines |= {f"- {name}, read from {where}" for name, (_, where) in of_data(runs).items() if where}
    return "\n".join(sorted(lines))
