"""What an exported checkpoint was made from, in a file beside its weights: which run it is of.

The layouts of other programs have no place for it, and an export without it could be taken for any
other of the same model.
"""

from pathlib import Path
from typing import Any

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.models.folders import ORIGIN
from trinity.harness.store import sums
from trinity.harness.store.stages import read_json, write_json
from trinity.methods.errors import ConfigError

VERSION = 1
AGAIN = "Export the checkpoint again."


def write(found: Checkpoint, place: Path) -> None:
    """Note in an export's folder which checkpoint its weights are of."""
    kept = {key: found.summary.get(key) for key in ("model", "recipe", "calibration", "layers")}
    write_json(place / ORIGIN, {"version": VERSION, **kept})


def read(folder: Path) -> dict[str, Any]:
    """What `write` noted (JSON, hence Any); ConfigError if nothing is, or the files are others."""
    if not (folder / ORIGIN).is_file():
        msg = (
            f"{folder}: holds no {ORIGIN}, which `trinity export` writes, so nothing says which "
            f"run its weights are of. {AGAIN}"
        )
        raise ConfigError(msg)
    if found := sums.damage(folder):
        msg = f"{folder}: is no longer what `trinity export` wrote: {found}. {AGAIN}"
        raise ConfigError(msg)
    try:
        origin = read_json(folder / ORIGIN)
        if not isinstance(origin, dict) or not isinstance(origin["layers"], dict):
            msg = "it names no layers"
            raise TypeError(msg)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{folder}: its {ORIGIN} cannot be read ({error!r}). {AGAIN}"
        raise ConfigError(msg) from error
    return origin
