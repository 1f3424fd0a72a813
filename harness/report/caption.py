"""The sentences above a table: what was measured, on what, and what it cannot show."""

from collections.abc import Mapping, Sequence
from typing import Any

from trinity.harness.recipes.paper import Paper, published_line
from trinity.harness.records.facts import AVERAGE, LOSSES, Average, Questions, Sized, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report.judged import Cell, Judged, heading, row_name
from trinity.harness.report.verdicts import accuracy_measurements
from trinity.harness.statistics.comparison import SHARES


def caption(paper: Paper, profile_name: str, judged: Judged) -> list[str]:
    """Sentences that say what was measured, on what, and what it cannot show."""
    record, table = judged.cells[0].record, judged.table
    lines = [
        f"{paper.title} ({paper.source}), {table.title}. Profile `{profile_name}`, model "
        f"{record.model.label}, activations in {record.recipe['model']['dtype']}."
    ]
    if record.model.note:
        lines.append(f"Mind: {record.model.note}.")
    if record.calibration:
        lines.append(f"Calibration: {_windows(record.calibration)}.")
    lines += _tuned(judged)
    lines += [f"{heading(m)}: {_scope(m)}." for m in judged.columns.values()]
    lines.append(
        "Accuracy is measured in torch: dense as it is (path `reference`), compressed rows on "
        "dequantized weights (`simulated`). Brackets are 95% intervals of the sample at hand; they "
        "hold no spread of calibration seeds."
    )
    lines.append(_compared(judged))
    lines += _resolved(judged)
    lines.append(_timed(record))
    lines += _published(judged)
    if not judged.profile.published_names:
        lines.append(
            "Sizes are chosen to fit two processor cores and differ from the paper's, and the "
            "paper has no number for this model: compare rows with each other."
        )
    if table.missing:
        lines.append(
            f"Rows of the paper's table that are not implemented yet: {', '.join(table.missing)}."
        )
    lines += _made_by(judged.cells)
    return lines


def _tuned(judged: Judged) -> list[str]:
    """How the rows that are tuned were tuned, and on which text."""
    lines = []
    for tune in [cell.record.recipe["compress"]["tune"] for cell in judged.cells if cell.row.tune]:
        options = {key: value for key, value in tune.items() if key not in ("method", "data")}
        given = ", ".join(f"{key} {value}" for key, value in options.items()) or "its defaults"
        text = _windows(tune["data"]) if tune["data"] else "the calibration text"
        lines.append(f"Fine-tuned rows: `{tune['method']}` ({given}) on {text}.")
    return list(dict.fromkeys(lines))


def _windows(text: Mapping[str, Any]) -> str:
    return (
        f"{text['samples']} windows of {text['seqlen']} tokens of {text['dataset']} "
        f"({text['rule']} rule, seed {text['seed']})"
    )


def _published(judged: Judged) -> list[str]:
    """Whose the paper's numbers are, and where they were read."""
    table, name = judged.table, judged.profile.published_names.get(judged.cells[0].record.model.id)
    model = name or table.reference
    lines = [table.note] if table.note else []
    if model is None:
        return lines
    names = {AVERAGE, *(m.name for m in accuracy_measurements(judged.cells[0].record))}
    found = [
        published_line(table, cell.row, cell.pattern, model, m)
        for cell in judged.cells
        for m in sorted(names)
    ]
    sources = dict.fromkeys(line["source"] for line in found if line)
    if sources:
        lines.append(f"Published numbers are those of {model}, read in: {'; '.join(sources)}.")
    return lines


def _compared(judged: Judged) -> str:
    if not judged.outcomes:
        return "No dense row is in this table, so no cell has a verdict against it."
    tested = next((o.compared for o in judged.outcomes.values() if o.compared), 0)
    return (
        f"Verdicts compare with the dense row on the same samples: the ratio of perplexities or "
        f"the difference in points, and `better`, `worse` or `no difference shown` (`n.s.` where "
        f"it is short) by an exact paired test at 5%, Holm-corrected over the {tested} tests of "
        f"this table. `could show` is the least difference that the test would have found four "
        f"times of five."
    )


def _resolved(judged: Judged) -> list[str]:
    """What sizes were chosen to show, and what they did show; nothing where none were chosen."""
    averaged = {task for m in judged.columns.values() for task in Average.of(m).tasks or ()}
    lines = []
    for key, m in judged.columns.items():
        facts = Sized.of(m)
        if m.name in averaged or facts.resolve is None or facts.resolution is None:
            continue
        of_questions = facts.discordance is not None
        count = Average.of(m).questions or len(m.samples)
        line = (
            f"{heading(m)}: {count} {'questions' if of_questions else 'windows'}, chosen to "
            f"resolve {facts.resolve}; they resolve {_difference(facts.resolution, m.metric)} (80% "
            f"power at 5% in one paired comparison, if {_assumed(facts, m.metric)})."
        )
        of_rows = [o.detectable for k, o in judged.outcomes.items() if k[1:] == key]
        least = [value for value in of_rows if value is not None]
        if least:
            line += (
                f" As far as these rows {'disagree' if of_questions else 'spread'}, and after the "
                f"correction, differences of {_difference(min(least), m.metric)} to "
                f"{_difference(max(least), m.metric)} could be shown."
            )
        lines.append(line)
    return lines


def _difference(effect: float, metric: str) -> str:
    """In the unit that a reader compares in."""
    if metric == LOSSES:
        return f"{effect:.3f}x"
    return f"{100 * effect:.1f} points" if metric in SHARES else f"{effect:.3g} nats"


def _assumed(facts: Sized, metric: str) -> str:
    """What the sizes rest on."""
    if facts.discordance is not None:
        return f"only one of two models is right in {facts.discordance:.0%} of them"
    spread = f"{100 * (facts.deviation or 0):.1f} points"
    if metric not in SHARES:
        spread = f"{facts.deviation:.2g} nats{' of loss' * (metric == LOSSES)}"
    return (
        f"the differences of windows have a standard deviation of {spread}, and within a cluster "
        f"correlate with {facts.alike:.1g}"
    )


def _timed(record: Record) -> str:
    bench = record.recipe.get("bench")
    if not bench:
        return "Nothing was timed."
    return (
        f"Decode: one sequence, {bench['new']} tokens one by one after a prompt of "
        f"{bench['prompt']}, {record.environment['threads']} threads, torch and IREE interleaved, "
        f"median of {bench['repeats']}. Torch runs dequantized floats; IREE runs packed weights by "
        f"the path in the cell, its logits compared with torch's before. Module bits/weight is "
        f"what the module reads, its padding included."
    )


def _made_by(cells: Sequence[Cell]) -> list[str]:
    """The machine and the code; where rows differ in that, which rows were made by which."""
    rows: dict[str, list[str]] = {}
    for cell in cells:
        rows.setdefault(_machine(cell.record), []).append(row_name(cell))
    if len(rows) == 1:
        return [f"Machine: {machine}" for machine in rows]
    return [
        f"Machine, {len(names)} row{'s' * (len(names) > 1)} ({'; '.join(names)}): {machine}"
        for machine, names in rows.items()
    ]


def _machine(record: Record) -> str:
    environment = record.environment
    packages = environment["packages"]
    dirty = " with local changes" if environment["dirty"] else ""
    return (
        f"{environment['cpu']}, {environment['cores']} cores; trinity "
        f"{packages['compression-trinity']}, torch {packages['torch']}, IREE "
        f"{packages['iree-base-compiler']}; commit {(environment['commit'] or 'none')[:12]}"
        f"{dirty}; {record.date}; record schema {record.schema_version}."
    )


def _scope(m: Measurement) -> str:
    """How much of a suite was run, in words."""
    if m.name == AVERAGE:
        return "unweighted mean of the tasks"
    text, asked = Text.of(m), Questions.of(m)
    parts = [f"{len(m.samples)} {'examples' if text.windows is None else 'windows'}"]
    if text.seqlen is not None:
        parts[0] += f" of {text.seqlen} tokens"
        if text.seqlen_bounded_from is not None:
            parts[0] += f" (the suite's {text.seqlen_bounded_from} exceed the model's context)"
    if asked.task_version is not None:
        parts.append(f"task version {asked.task_version}, {asked.num_fewshot or 0}-shot")
    return f"{m.metric}, {', '.join(parts)}"
