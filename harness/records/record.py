"""The record of one run: one JSON file, a superset of lm-eval's result keys."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trinity.harness.records.measurement import Measurement
from trinity.harness.store import write_json
from trinity.methods.errors import RecordError

SCHEMA_VERSION = 1


class ModelInfo(BaseModel):
    """Which model a run was about, and what a reader must know of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    label: str
    revision: str | None
    sha256: str
    note: str


class CheckpointInfo(BaseModel):
    """The compressed checkpoint: sizes counted from its files, results of every layer.

    inputs: what the inputs of a layer are rounded to at run time, where they are
    imported: of weights compressed elsewhere, the source's options, the linears it left dense and
        the tensors it could not map; null for weights compressed here
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    bits_per_weight: float
    stored_bytes: dict[str, int]
    layers: dict[str, Any]
    inputs: dict[str, str] = {}
    imported: dict[str, Any] | None = None


class LoweringInfo(BaseModel):
    """The compiled module and how far its logits are from torch's.

    logit_errors: norm of the differences from torch's logits over theirs, of prefill and of decode
    outside: layers that no method compressed and that are stored in a narrower format, which holds
    their numbers exactly; its label by name
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    fingerprint: str
    compiler: str
    flags: list[str]
    bits_per_weight: float
    outside: dict[str, str] = {}
    logit_errors: dict[str, float]
    tolerance: float
    compile_s: float


class Record(BaseModel):
    """Everything about one run.  A part that was not done is null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    date: str
    recipe: dict[str, Any]
    model: ModelInfo
    calibration: dict[str, Any] | None
    checkpoint: CheckpointInfo
    lowering: LoweringInfo | None
    measurements: list[Measurement]
    environment: dict[str, Any]

    @property
    def place(self) -> Path:
        """`<model>/<recipe>/<machine>-<date>.json` under `results/v1`."""
        machine = self.environment["machine"]
        return Path(self.model.label, self.recipe["name"], f"{machine}-{self.date}.json")

    def find(self, name: str, metric: str, engine: str | None = None) -> Measurement | None:
        """The measurement of that name and metric, of any engine if none is given."""
        for measurement in self.measurements:
            if (measurement.name, measurement.metric) == (name, metric) and engine in (
                None,
                measurement.engine,
            ):
                return measurement
        return None


def to_json(record: Record) -> dict[str, Any]:
    """The record as it is written, with lm-eval's keys beside our own."""
    data = record.model_dump(mode="json")
    accuracy = [m for m in record.measurements if "lm_eval" in m.details]
    data["results"] = {m.name: _lm_eval_result(m) for m in accuracy}
    data["configs"] = {m.name: {"num_fewshot": m.details.get("num_fewshot")} for m in accuracy}
    data["versions"] = {m.name: m.details.get("task_version") for m in accuracy}
    data["n-shot"] = {m.name: m.details.get("num_fewshot") for m in accuracy}
    data["higher_is_better"] = {m.name: {m.metric: m.higher_is_better} for m in accuracy}
    data["n-samples"] = {m.name: {"effective": len(m.samples)} for m in accuracy}
    return data


LM_EVAL_KEYS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def write(record: Record, results: Path) -> Path:
    """Write a record under `results/v1`; an equal one that is there already is left alone."""
    path = results / "v1" / record.place
    path.parent.mkdir(parents=True, exist_ok=True)
    data = to_json(record)
    serial = 1
    while path.exists():
        if json.loads(path.read_text()) == json.loads(json.dumps(data)):
            return path
        # Records are append-only: another run on the same day gets its own file.
        serial += 1
        path = path.with_name(f"{record.place.stem}-{serial}.json")
    write_json(path, data)
    return path


def read(path: Path) -> Record:
    """Read a record; RecordError says if it is damaged or newer than this reader."""
    try:
        data = json.loads(path.read_text())
        version = data["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"record {path}: cannot be read ({error!r})."
        raise RecordError(msg) from error
    if version > SCHEMA_VERSION:
        msg = (
            f"record {path}: has schema version {version}, this trinity reads up to "
            f"{SCHEMA_VERSION}. Upgrade with `pip install -U compression-trinity`."
        )
        raise RecordError(msg)
    try:
        return Record.model_validate({k: v for k, v in data.items() if k not in LM_EVAL_KEYS})
    except ValidationError as error:
        first = error.errors()[0]
        msg = f"record {path}: `{'.'.join(map(str, first['loc']))}`: {first['msg']}."
        raise RecordError(msg) from error


def read_all(results: Path) -> list[Record]:
    """Every record under a results folder, in the order of their paths."""
    return [read(path) for path in sorted((results / "v1").rglob("*.json"))]


def age(path: Path, found: Record) -> tuple[str, int, str]:
    """Older before newer: by day, and within a day by the number at the end of the file's name."""
    return str(found.date), len(path.name), path.name


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of a record file."""
    schema = Record.model_json_schema()
    for key in LM_EVAL_KEYS:
        schema["properties"][key] = {"type": "object", "description": "as in lm-eval's results"}
    return schema


def _lm_eval_result(m: Measurement) -> dict[str, Any]:
    n = len(m.samples)
    error = None
    if m.value is not None and n > 1:
        error = math.sqrt(m.value * (1 - m.value) / (n - 1))
    return {"alias": m.name, f"{m.metric},none": m.value, f"{m.metric}_stderr,none": error}
