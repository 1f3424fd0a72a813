"""A checkpoint of any program beside the dense model that it was made from, sample by sample.

The checkpoint becomes a model folder of plain floats, which the suites measure as any other; the
verdicts are those of `trinity compare`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trinity.harness.audit import against, plain
from trinity.harness.audit import faults as found_in
from trinity.harness.audit.against import Error
from trinity.harness.audit.audit import Audit
from trinity.harness.checkpoints.checkpoint import copy_companions
from trinity.harness.compress.imported import check_same_shapes
from trinity.harness.models.decoder import Decoder
from trinity.harness.report import compared
from trinity.harness.sources import sources
from trinity.harness.sources.sources import ModelFolder
from trinity.harness.statistics.comparison import Outcome
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore, known_sha256
from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.terminal.progress import Reporter
from trinity.harness.tracking.comparing import Evaluation, compare_two
from trinity.methods.errors import TrinityError

CPU = torch.device("cpu")
INPUTS = (
    "its configuration rounds inputs when the model runs; here they are not rounded, so the model "
    "itself is no better than this"
)


@dataclass(frozen=True, eq=False)
class Against:
    """A checkpoint against a dense model.

    outcomes: of every measurement of both   rounded_inputs: see `plain.rounded_inputs`
    reason: why nothing was compared
    """

    dense: str
    errors: Sequence[Error]
    outcomes: Sequence[Outcome]
    rounded_inputs: bool = False
    reason: str = ""


def compare(
    found: Audit, how: Evaluation, store: StageStore, reporter: Reporter
) -> tuple[Audit, Against]:
    """The audit with the layers that only the comparison shows to be wrong, and the comparison.

    how: the suites, and the dense model that the checkpoint was made from

    ConfigError if it is of another architecture.  Where no model can be made of the checkpoint, and
    the audit has found faults, the comparison says why there is none; else it is an error too.
    """
    assert how.dense is not None  # what is asked for here
    source = sources.resolve(how.dense, None, store, reporter=reporter)
    theirs = Decoder(source.path, torch.float32, CPU)
    theirs.check_weights()
    reporter.say(f"{found.path}: as plain floats")
    try:
        folder = _as_folder(found.path, source, store)
        ours = Decoder(folder, torch.float32, CPU)
        check_same_shapes(f"audit {found.path}", ours.model, theirs)
        ours.check_weights()
    except TrinityError as error:
        if not found.faults:
            raise
        return found, Against(how.dense, [], [], reason=str(error))
    reporter.say(f"{found.path}: errors of its layers")
    errors = against.errors(found, ours, theirs)
    outcomes = compare_two(str(folder), how.dense, how, store, reporter)
    wrong = replace(found, faults=[*found.faults, *against.outliers(errors)])
    return wrong, Against(how.dense, errors, outcomes, plain.rounded_inputs(found.path))


def _as_folder(path: Path, dense: ModelFolder, store: StageStore) -> Path:
    """The checkpoint as plain floats, with the dense model's tokenizer: both read the same tokens.

    The folder is of the store, and called like the checkpoint: progress lines say its name.
    """
    called = path.resolve().name  # of '.' too
    inputs = {
        "name": called,
        "checkpoint": known_sha256(path) if path.is_file() else sources.folder_sha256(path),
        "dense": dense.sha256,
        "code": own_code.sha256(plain),
    }

    def fill(stage: Path) -> None:
        place = stage / called
        place.mkdir()
        plain.write(place, path)
        copy_companions(dense.path, place)

    return store.fill("audited", inputs, fill) / called


def grids(found: Against) -> list[Grid]:
    """The errors by kind of layer, and the measurements."""
    if found.reason:
        return [Grid(f"not compared with {found.dense}", [Column("why")], [[found.reason]])]
    kinds: dict[tuple[str, str], list[Error]] = defaultdict(list)
    for error in found.errors:
        kinds[found_in.NUMBER.sub("*", error.layer), error.form].append(error)
    columns = [Column("layers"), Column("stored as"), Column("count", right=True, spare=1)]
    columns += [Column("median error", right=True), Column("largest", right=True), Column("where")]
    rows = [[kind, form, *_spread(errors)] for (kind, form), errors in kinds.items()]
    title = f"Weights against {found.dense}: |W' - W| / |W|"
    text = replace(compared.grid(found.outcomes), title=f"On text, baseline {found.dense}")
    notes = [INPUTS] if found.rounded_inputs else []
    return [Grid(title, columns, rows), replace(text, notes=notes)]


def data(found: Against) -> dict[str, Any]:
    """For programs (values of several types, hence Any)."""
    return {
        "dense": found.dense,
        "errors": {error.layer: error.relative for error in found.errors},
        "outcomes": [outcome.model_dump(mode="json") for outcome in found.outcomes],
        "rounded_inputs": found.rounded_inputs,
        "reason": found.reason or None,
    }


def _spread(errors: Sequence[Error]) -> list[str]:
    """Count, median, largest, and which that is."""
    ordered = sorted(errors, key=lambda error: error.relative)
    middle, last = ordered[len(ordered) // 2], ordered[-1]
    where = last.layer if len(ordered) > 1 and last.relative > 0 else ""
    return [str(len(ordered)), f"{middle.relative:.3g}", f"{last.relative:.3g}", where]
