"""Memory by component: what the files hold, and what a process takes while it runs."""

from collections.abc import Iterator, Sequence

from trinity.harness.figures.figure import Choice, Figure, Option, Row, significant
from trinity.harness.figures.shown import Shown
from trinity.harness.records.facts import Memory
from trinity.harness.records.measurement import Measurement

MIB = 2.0**-20
STORED, PEAK = "stored", "peak"
COMPONENTS = {  # in the order in which they are stacked
    "linears": "linears of the blocks",
    "rest": "embeddings, head, norms",
    "before": "process before loading",
    "weights": "weights as stored",
    "working": "cache, activations, code",
    "floats": "model, weights as floats",
}


def memory(runs: Sequence[Shown]) -> Figure:
    """Stored bytes of every run, and the peak of those that were measured in a process."""
    name, title = "memory", "Memory by component"
    says = (
        "What is stored is counted from the files. The peak is the resident memory of a process of "
        "its own that loads the model and runs it; its first part is what Python and its libraries "
        "take before that."
    )
    rows = [row for run in runs for row in (*_stored(run), *_peaks(run))]
    if not rows:
        return Figure(name, title, says, lacking="No record holds sizes.")
    kept = dict.fromkeys(str(row["of"]) for row in rows)
    options = tuple(Option(of, _label(of), {"x": "MiB"}) for of in kept)
    return Figure(name, title, says, tuple(rows), (Choice("of", "Memory", options),))


def _label(of: str) -> str:
    model, _, kind = of.partition("|")
    return f"{model}, {'files' if kind == STORED else 'peak of a process'}"


def _stored(run: Shown) -> Iterator[Row]:
    for component, size in sorted(run.record.checkpoint.stored_bytes.items()):
        yield _row(run, STORED, run.name, component, size)


def _peaks(run: Shown) -> Iterator[Row]:
    for m in run.record.measurements:
        before = Memory.of(m).before_loading_bytes
        if m.metric != "resident_bytes" or m.value is None or before is None:
            continue
        for component, size in _parts(run, m, float(before)):
            yield _row(run, PEAK, f"{run.name}, {m.engine} ({m.path})", component, size)


def _parts(run: Shown, m: Measurement, before: float) -> list[tuple[str, float]]:
    assert m.value is not None
    model, weights = m.value - before, float(sum(run.record.checkpoint.stored_bytes.values()))
    if m.path == "simulated" or weights > model:
        return [("before", before), ("floats", model)]
    return [("before", before), ("weights", weights), ("working", model - weights)]


def _row(run: Shown, kind: str, name: str, component: str, size: float) -> Row:
    return {
        "of": f"{run.model}|{kind}",
        "run": name,
        "component": COMPONENTS.get(component, component),
        "order": float(list(COMPONENTS).index(component) if component in COMPONENTS else 9),
        "MiB": significant(MIB * size),
        "record": run.path,
    }
