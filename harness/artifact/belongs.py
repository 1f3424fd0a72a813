"""Whether a record is of an exported checkpoint: numbers of another model must not be published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trinity.harness.checkpoints import origin
from trinity.harness.records.record import Record
from trinity.methods.errors import ConfigError

# Numbers of the weights themselves. What else is said of layers may be newer than a record.
FACTS = ("relative_error", "sparsity", "bits_per_weight")


def check(folder: Path, found: Record, path: str) -> None:
    """ConfigError that says what the record is of and what the checkpoint is, if they differ.

    folder: made by `trinity export`   path: of the record, to be named
    """
    made = origin.read(folder)
    differing = _model(made, found) or _text(made, found) or _layers(made["layers"], found)
    if differing:
        msg = (
            f"card {folder}: the record {path} is of another checkpoint: {differing}. Give the "
            f"record of the run that made this checkpoint, or export the checkpoint of that run."
        )
        raise ConfigError(msg)


def _model(made: Mapping[str, Any], found: Record) -> str | None:
    model = made.get("model") or {}
    if model.get("sha256") == found.model.sha256:
        return None
    return (
        f"it is of {found.model.id} (sha256 {found.model.sha256[:12]}), and the checkpoint was "
        f"made from {model.get('id', 'a model')} (sha256 {str(model.get('sha256'))[:12]})"
    )


def _text(made: Mapping[str, Any], found: Record) -> str | None:
    """Of runs that differ in their calibration, as seeds do."""
    theirs, ours = made.get("calibration") or {}, found.calibration or {}
    if theirs.get("ids_sha256") == ours.get("ids_sha256"):
        return None
    return f"its run was calibrated on {_said(ours)}, and the checkpoint on {_said(theirs)}"


def _said(calibration: Mapping[str, Any]) -> str:
    if not calibration:
        return "nothing"
    return (
        f"{calibration.get('samples')} windows of {calibration.get('dataset')}, seed "
        f"{calibration.get('seed')} (sha256 {str(calibration.get('ids_sha256'))[:12]})"
    )


def _layers(made: Mapping[str, Any], found: Record) -> str | None:
    """The first layer that differs."""
    recorded = found.checkpoint.layers
    if alone := sorted(made.keys() ^ recorded.keys()):
        where = "the checkpoint" if alone[0] in made else "the record"
        return f"only {where} has a compressed layer {alone[0]}"
    for name, layer in made.items():
        theirs, ours = (_numbers(one) for one in (layer, recorded[name]))
        if theirs != ours:
            return f"{name} is {_layer(ours)} there, and {_layer(theirs)} in the checkpoint"
    return None


def _numbers(layer: Mapping[str, Any]) -> dict[str, Any]:
    label = (layer.get("format") or {}).get("label")
    return {"label": label, **{fact: layer.get(fact) for fact in FACTS}}


def _layer(numbers: Mapping[str, Any]) -> str:
    error = numbers["relative_error"]
    said = "" if error is None else f" with relative error {error:.9g}"
    return f"{numbers['label']}{said}"
