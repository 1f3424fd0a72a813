"""What a gate leaves: Markdown for a comment on a pull request, JUnit XML, JSON; and its table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from trinity.harness.report import compared
from trinity.harness.store.writing import write_text, writing
from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.terminal.printing import as_text
from trinity.harness.tracking.judging import UNJUDGED, Gate, Judgement

FILES = ("gate.md", "gate.xml", "gate.json")
_SAID = {
    "passed": "passed",
    "regressed": "**REGRESSED**",
    "warned": "warning: regressed",
    "new": "new",
    "unjudged": "**NOT JUDGED**",
    "noted": "not judged",
}
_COLUMNS = ("recipe", "measurement", "baseline", "ours", "effect", "95% interval", "gate", "why")


def write(gate: Gate, folder: Path) -> list[Path]:
    """The three files, in `folder`."""
    texts = (markdown(gate), junit(gate), as_text(data(gate)) + "\n")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in FILES]
        for path, text in zip(paths, texts, strict=True):
            write_text(path, text)
    return paths


def data(gate: Gate) -> dict[str, Any]:
    """The gate as plain data."""
    return {
        "passed": gate.exit_code == 0,
        "result": gate.word,
        "exit_code": gate.exit_code,
        "baseline": gate.against,
        "broken": [{"recipe": one.recipe, "why": one.why} for one in gate.broken],
        "judgements": [
            {
                "recipe": one.recipe,
                "status": one.status,
                "why": one.why,
                "baseline": one.baseline,
                "check": one.check.model_dump(mode="json"),
                "outcome": one.outcome.model_dump(mode="json"),
            }
            for one in gate.judgements
        ],
    }


def grid(gate: Gate) -> Grid:
    """A row a judgement, what needs a reader first."""
    right = {"baseline", "ours", "effect", "95% interval"}
    columns = [Column(name, name in right, spare=name == "why") for name in _COLUMNS]
    rows = [_row(one) for one in _ordered(gate.judgements)]
    plain = [[cell.replace("**", "") for cell in row] for row in rows]
    notes = [f"BROKEN {one.recipe}: {one.why}" for one in gate.broken]
    return Grid("", columns, plain, [*notes, _summary(gate)])


def markdown(gate: Gate) -> str:
    """Fit for a comment: the result, what is not simply well, and the rest folded away."""
    lines = [f"### Gate: {gate.word}", "", _summary(gate), ""]
    lines += [f"- **BROKEN** `{one.recipe}`: {_cell(one.why)}" for one in gate.broken]
    lines += [""] * bool(gate.broken)
    ordered = _ordered(gate.judgements)
    seen = [one for one in ordered if one.status != "passed"]
    if seen:
        lines += [*_table(seen), ""]
    passed = [one for one in ordered if one.status == "passed"]
    if passed:
        lines += [f"<details><summary>{len(passed)} passed</summary>", ""]
        lines += [*_table(passed), "", "</details>", ""]
    return "\n".join(lines)


def junit(gate: Gate) -> str:
    """JUnit XML: a suite a recipe, a case a measurement."""
    root = Element("testsuites", name="trinity gate")
    names = [*(one.recipe for one in gate.judgements), *(one.recipe for one in gate.broken)]
    for name in dict.fromkeys(names):
        judged = [one for one in gate.judgements if one.recipe == name]
        broken = [one for one in gate.broken if one.recipe == name]
        failures = sum(one.status == "regressed" for one in judged)
        errors = sum(one.status == "unjudged" for one in judged) + len(broken)
        skipped = sum(one.status in ("noted", "new") for one in judged)
        suite = SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(judged) + len(broken)),
            failures=str(failures),
            errors=str(errors),
            skipped=str(skipped),
        )
        for one in judged:
            _case(suite, one)
        for lost in broken:
            case = SubElement(suite, "testcase", classname=name, name="run")
            SubElement(case, "error", message=_printable(lost.why))
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: Element, one: Judgement) -> None:
    outcome = one.outcome
    name = " ".join(filter(None, (outcome.name, outcome.metric, outcome.engine)))
    case = SubElement(suite, "testcase", classname=one.recipe, name=name)
    kinds = {"regressed": "failure", "unjudged": "error", "noted": "skipped", "new": "skipped"}
    if one.status in kinds:
        SubElement(case, kinds[one.status], message=_printable(one.why))
    elif one.why:
        said = SubElement(case, "system-out")
        said.text = _printable(f"{one.status}: {one.why}")


def _printable(text: str) -> str:
    """XML 1.0 has no control characters, and a crashed run may have printed some."""
    return "".join(c if c in "\t\n" or c >= " " else "?" for c in text)


def _summary(gate: Gate) -> str:
    counts = {
        "passed": len(gate.of("passed")),
        "regressed": len(gate.of("regressed")),
        "regressed, as a warning": len(gate.of("warned")),
        "not judged": len(gate.of("unjudged", "noted")),
        "new": len(gate.of("new")),
        "broken runs": len(gate.broken),
    }
    said = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
    text = f"Against {gate.against}: {said or 'nothing was measured'}."
    if gate.exit_code == UNJUDGED:
        text += " A gate that could not judge what it was asked for does not pass."
    return text


def _ordered(judgements: Sequence[Judgement]) -> list[Judgement]:
    order = list(_SAID)
    order.remove("passed")
    return sorted(judgements, key=lambda one: [*order, "passed"].index(one.status))


def _row(one: Judgement) -> list[str]:
    """A cell for each of `_COLUMNS`."""
    o = one.outcome
    engine = f" ({o.engine})" if o.engine else ""
    cells = compared.cells(o)
    name = f"{o.name} {o.metric.replace('_', ' ')}{engine}"
    numbers = (cells.baseline, cells.ours, cells.effect, cells.interval)
    return [one.recipe, name, *numbers, _SAID[one.status], one.why]


def _table(judgements: Sequence[Judgement]) -> list[str]:
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_row, judgements)]
    return [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
