"""The record of a run as a stage: put together from what the run made and measured."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records.environment import environment, project_here
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import CheckpointInfo, LoweringInfo, ModelInfo, Record
from trinity.harness.store.spent import Seconds
from trinity.harness.store.stages import read_json, write_json

FILE = "record.json"


def write(
    folder: Path,
    *,
    recipe: Recipe,
    model: ModelInfo,
    calibration: dict[str, Any] | None,
    checkpoint: Checkpoint,
    lowering: LoweringInfo | None,
    measurements: list[Measurement],
    plugins: dict[str, str],
    spent: Mapping[str, Seconds],
) -> None:
    """Fill a stage with a record.

    calibration: the text, and of every seed the windows drawn   checkpoint: in its stage
    plugins: the packages that had a part in the run, with their versions
    spent: what this run took, by part, where other runs had not done it already
    """
    now = datetime.now(UTC)
    here = {
        "plugins": plugins,
        "project": project_here(),
        "time": now.isoformat("T", "seconds"),
        "spent_s": {part: round(seconds.wall, 2) for part, seconds in spent.items()},
    }
    record = Record(
        date=now.strftime("%Y-%m-%d"),
        recipe=recipe.model_dump(mode="json"),
        model=model,
        calibration=calibration,
        checkpoint=CheckpointInfo(
            fingerprint=checkpoint.folder.name,
            bits_per_weight=checkpoint.bits_per_weight,
            stored_bytes=checkpoint.stored_bytes(),
            layers=checkpoint.summary["layers"],
            inputs={name: found.label for name, found in checkpoint.inputs.items()},
            cache=checkpoint.cache.label if checkpoint.cache else None,
            imported=checkpoint.summary.get("imported"),
        ),
        lowering=lowering,
        measurements=measurements,
        environment=environment() | here,
    )
    write_json(folder / FILE, record.model_dump(mode="json"))


def read(folder: Path) -> Record:
    """The record of a stage."""
    return Record.model_validate(read_json(folder / FILE))
