"""The record of one run: one JSON file, a superset of lm-eval's result keys."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trinity.harness.records.facts import Questions
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.migrations import SCHEMA_VERSION, migrated
from trinity.harness.store import writing
from trinity.harness.store.stages import as_json, fingerprint
from trinity.methods.errors import RecordError


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
    cache: how keys and values are kept at run time, 'rtn-cache: int8 token and head'; null as
        floats
    imported: of weights compressed elsewhere, the source's options, the linears it left dense and
        the tensors it could not map; null for weights compressed here
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    bits_per_weight: float
    stored_bytes: dict[str, int]
    layers: dict[str, Any]
    inputs: dict[str, str] = {}
    cache: str | None = Field(None, exclude_if=lambda cache: cache is None)
    imported: dict[str, Any] | None = None


class LoweringInfo(BaseModel):
    """The compiled module and how far its logits are from torch's.

    kernels: 'kernel' (ours) or 'compiled' (IREE's own code) of every compressed layer, and flavour:
        which instructions the kernels for processors are written in; not in older records
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
    kernels: dict[str, str] = {}
    flavour: str | None = None
    logit_errors: dict[str, float]
    tolerance: float
    compile_s: float


class Record(BaseModel):
    """Everything about one run.  A part that was not done is null.

    schema_version: of the file that it was read from; its content is of today's version
    """

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
        """`<model>/<recipe>/<machine>-<date>.json` under `results/v1`, whatever the schema."""
        machine = self.environment["machine"]
        return folder_of(self.model.label, self.recipe["name"]) / f"{machine}-{self.date}.json"

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
    """The record as it is written: lm-eval's keys beside our own, and a hash over all of them."""
    data = record.model_dump(mode="json")
    # Tasks; what else is made of their answers (flips) is no result of lm-eval's.
    asked = {m.name: (m, Questions.of(m)) for m in record.measurements if m.metric == "acc"}
    asked = {name: (m, of) for name, (m, of) in asked.items() if of.lm_eval_version}
    accuracy = [m for m, _ in asked.values()]
    data["results"] = {m.name: _lm_eval_result(m) for m in accuracy}
    data["configs"] = {name: {"num_fewshot": of.num_fewshot} for name, (_, of) in asked.items()}
    data["versions"] = {name: of.task_version for name, (_, of) in asked.items()}
    data["n-shot"] = {name: of.num_fewshot for name, (_, of) in asked.items()}
    data["higher_is_better"] = {m.name: {m.metric: m.higher_is_better} for m in accuracy}
    data["n-samples"] = {m.name: {"effective": len(m.samples)} for m in accuracy}
    data[SHA256] = fingerprint(data)
    return data


LM_EVAL_KEYS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
SHA256 = "sha256"  # of the file's other keys; older files have none


def folder_of(label: str, name: str) -> Path:
    """`<model>/<recipe>` of a model's label and a recipe's name; RecordError if that is no path of
    two folders below `results/v1`.
    """
    for what, text in (("model label", label), ("recipe name", name)):
        if text in ("", ".", "..") or "/" in text or "\0" in text:
            msg = f"{what} '{text}' cannot name the folder of a record. Rename the model or recipe."
            raise RecordError(msg)
    return Path(label, name)


def check_writable(results: Path, label: str, name: str) -> None:
    """Before the work: whether the record of a run can be written."""
    writing.check_writable(results / "v1" / folder_of(label, name))


def write(record: Record, results: Path) -> Path:
    """Write a record under `results/v1`; an equal one that is there already is left alone."""
    path = results / "v1" / record.place
    text = as_json(to_json(record))
    with writing.writing(results):
        path.parent.mkdir(parents=True, exist_ok=True)
    serial = 1
    # Records are append-only: another run on the same day gets its own file, also if both end at
    # once.
    while not writing.write_new(path, text):
        if json.loads(path.read_text(encoding="utf-8")) == json.loads(text):
            return path
        serial += 1
        path = path.with_name(f"{record.place.stem}-{serial}.json")
    return path


def read(path: Path) -> Record:
    """Read a record; RecordError says if it is damaged or newer than this reader."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from error
    return parse(text, str(path))


def parse(text: str, place: str) -> Record:
    """A record from its text; RecordError names its place."""
    try:
        data = json.loads(text)
        version = int(data["schema_version"])
        written = data.pop(SHA256, None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(place, error) from error
    if not 1 <= version <= SCHEMA_VERSION:
        msg = (
            f"record {place}: has schema version {version}, this trinity reads 1 to "
            f"{SCHEMA_VERSION}. Upgrade with `pip install -U compression-trinity`."
        )
        raise RecordError(msg)
    if written is not None and written != fingerprint(data):
        msg = (
            f"record {place}: is damaged, or was edited: its content has another sha256 than when "
            f"it was written. Get the file again; a record is never changed."
        )
        raise RecordError(msg)
    try:
        data = migrated(data, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"record {place}: is no whole record of schema version {version} ({error!r})."
        raise RecordError(msg) from error
    try:
        found = Record.model_validate({k: v for k, v in data.items() if k not in LM_EVAL_KEYS})
    except ValidationError as error:
        first = error.errors()[0]
        msg = f"record {place}: `{'.'.join(map(str, first['loc']))}`: {first['msg']}."
        raise RecordError(msg) from error
    for section, name in (("recipe", "name"), ("environment", "machine")):
        if name not in getattr(found, section):
            msg = f"record {place}: has no `{section}.{name}`, which tells it from others."
            raise RecordError(msg)
    return found


def _unreadable(place: str, error: Exception) -> RecordError:
    reason = getattr(error, "strerror", None) or repr(error)
    return RecordError(f"record {place}: cannot be read ({reason}).")


def read_all(results: Path) -> list[Record]:
    """Every record under a results folder, in the order of their paths."""
    return [read(path) for path in sorted((results / "v1").rglob("*.json"))]


def age(path: Path, found: Record) -> tuple[str, str, int, str]:
    """Older before newer: by day, and within a day by time, where the record has one, and by the
    number at the end of the file's name.
    """
    time = found.environment.get("time") or ""
    return str(found.date), str(time), len(path.name), path.name


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of a record file."""
    schema = Record.model_json_schema()
    for key in LM_EVAL_KEYS:
        schema["properties"][key] = {"type": "object", "description": "as in lm-eval's results"}
    schema["properties"][SHA256] = {"type": "string", "description": "of all other keys"}
    return schema


def _lm_eval_result(m: Measurement) -> dict[str, Any]:
    n = len(m.samples)
    error = None
    if m.value is not None and n > 1:
        error = math.sqrt(m.value * (1 - m.value) / (n - 1))
    return {"alias": m.name, f"{m.metric},none": m.value, f"{m.metric}_stderr,none": error}
