"""Licences of models and data, as far as anyone here knows them; the source has the last word."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata

from trinity.harness.figures.shown import Shown
from trinity.harness.records.facts import Data, Questions, Text

UNKNOWN = "not known to Trinity: see its source"
# As their publishers state them; by the name that records use.
DATA = {
    "arc_challenge": "CC BY-SA 4.0",
    "arc_easy": "CC BY-SA 4.0",
    "boolq": "CC BY-SA 3.0",
    "c4": "ODC-BY 1.0, and the terms of Common Crawl",
    "c4-sample": "ODC-BY 1.0, and the terms of Common Crawl",
    "hellaswag": "MIT",
    "mmlu": "MIT",
    "openbookqa": "Apache-2.0",
    "piqa": "AFL-3.0",
    "ptb": "LDC User Agreement: may not be passed on",
    "pydoc": "PSF-2.0",
    "wikitext2": "CC BY-SA 3.0 and GFDL",
    "winogrande": "CC BY 4.0",
}


def of_models(runs: Sequence[Shown]) -> dict[str, str]:
    """Model id -> its licence, where a package says it."""
    found: dict[str, str] = {}
    for run in runs:
        model = run.record.model
        kind, _, name = model.id.partition(":")
        if kind == "package":
            found[model.id] = _of_package(name)
        elif kind in ("random", "trained"):
            found[model.id] = "made by Trinity itself: Apache-2.0"
        else:
            found[model.id] = UNKNOWN
    return found


def of_data(runs: Sequence[Shown]) -> dict[str, tuple[str, str]]:
    """Name of a text or task -> its licence, and where it was read."""
    found: dict[str, tuple[str, str]] = {}
    for run in runs:
        calibration = run.record.calibration or {}
        if name := calibration.get("dataset"):
            where = str(calibration.get("source") or "")
            found[str(name)] = (DATA.get(str(name), UNKNOWN), where)
        for m in run.record.measurements:
            name = Text.of(m).corpus or (m.name if Questions.of(m).examples else None)
            if name:
                where = Data.of(m).source or ""
                found[str(name)] = (DATA.get(str(name), UNKNOWN), where)
    return dict(sorted(found.items()))


def _of_package(name: str) -> str:
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return f"{UNKNOWN} (the package {name}, which is not installed here)"
    stated = [said[key] for key in ("License-Expression", "License") if key in said]
    words = stated[0].splitlines()[0] if stated and stated[0] else UNKNOWN
    return f"package {name}: {words}; the model inside may have its own, see its page"
