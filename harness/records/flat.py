"""Records as a flat table: one row a measurement, plain values in every column."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trinity.harness.records import record
from trinity.harness.records.facts import (
    Conditions,
    Facts,
    Floor,
    OfSuite,
    Questions,
    Speedup,
    Text,
)
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record

_PACKAGES = {
    "trinity": "compression-trinity",
    "torch": "torch",
    "transformers": "transformers",
    "iree": "iree-base-compiler",
}
_FACTS: dict[type[Facts], tuple[str, ...]] = {
    OfSuite: ("suite",),
    Text: ("corpus", "split", "seqlen", "windows"),
    Questions: ("examples", "task_version", "num_fewshot"),
    Conditions: ("batch", "prompt_tokens", "new_tokens"),
    Speedup: ("baseline_engine", "noise_floor", "verdict"),
    Floor: ("floor_share",),
}
COLUMNS = (
    *("record", "schema_version", "date", "time", "model", "model_id", "revision", "recipe"),
    *("methods", "calibration", "seed", "bits_per_weight", "target", "flavour"),
    *("machine", "cpu", "gpu", "threads", "memory_bytes"),
    *("commit", "dirty", "project_commit", "project_branch", *_PACKAGES),
    *("name", "metric", "engine", "path", "value", "unit", "low", "high", "higher_is_better"),
    *("samples", "seeds", "seed_mean", "seed_sd", "reason"),
    *(name for names in _FACTS.values() for name in names),
    *("recipe_json", "details_json", "samples_json"),
)
"""Of a row, in order.  The last three hold the rest as JSON text."""


def rows(results: Path) -> Iterator[dict[str, Any]]:
    """A row for every measurement of every record under a results folder."""
    for path in sorted((results / "v1").rglob("*.json")):
        found = record.read(path)
        common = _of_record(found, path.relative_to(results).as_posix())
        for m in found.measurements:
            yield {**common, **_of_measurement(m)}


def _of_record(found: Record, place: str) -> dict[str, Any]:
    environment, lowering = found.environment, found.lowering
    project = environment.get("project") or {}
    steps = (found.recipe.get("compress") or {}).get("steps", [])
    calibration = found.calibration or {}
    packages = environment.get("packages", {})
    return {
        "record": place,
        "schema_version": found.schema_version,
        "date": found.date,
        "time": environment.get("time"),
        "model": found.model.label,
        "model_id": found.model.id,
        "revision": found.model.revision,
        "recipe": found.recipe["name"],
        "methods": "+".join(str(step.get("method")) for step in steps) or "dense",
        "calibration": calibration.get("dataset"),
        "seed": calibration.get("seed"),
        "bits_per_weight": found.checkpoint.bits_per_weight,
        "target": lowering.target if lowering else None,
        "flavour": lowering.flavour if lowering else None,
        **{key: environment.get(key) for key in ("machine", "cpu", "gpu", "threads")},
        "memory_bytes": environment.get("memory_bytes"),
        "commit": environment.get("commit"),
        "dirty": environment.get("dirty"),
        "project_commit": project.get("commit"),
        "project_branch": project.get("branch"),
        **{column: packages.get(package) for column, package in _PACKAGES.items()},
        "recipe_json": json.dumps(found.recipe, sort_keys=True),
    }


def _of_measurement(m: Measurement) -> dict[str, Any]:
    facts = {name: getattr(group.of(m), name) for group, names in _FACTS.items() for name in names}
    # Tasks of lm-eval have numbers as versions, and some have text: a column has one type.
    version = facts["task_version"]
    facts["task_version"] = None if version is None else str(version)
    return {
        "name": m.name,
        "metric": m.metric,
        "engine": m.engine,
        "path": m.path,
        "value": m.value,
        "unit": m.unit,
        "low": m.interval.low if m.interval else None,
        "high": m.interval.high if m.interval else None,
        "higher_is_better": m.higher_is_better,
        "samples": len(m.samples),
        "seeds": len(m.seeds.values) if m.seeds else None,
        "seed_mean": m.seeds.mean if m.seeds else None,
        "seed_sd": m.seeds.deviation if m.seeds else None,
        "reason": m.reason,
        **facts,
        "details_json": json.dumps(m.details, sort_keys=True),
        "samples_json": json.dumps(m.samples),
    }
