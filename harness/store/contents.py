"""What a stage store holds, and what of it goes first: by age, by size, or made by other code."""

import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trinity.harness.store import own_code
from trinity.harness.store.stages import MANIFEST, StageStore, read_json
from trinity.methods.errors import ConfigError, MachineError

logger = logging.getLogger(__name__)

LIMIT = "TRINITY_CACHE_SIZE"
RECENT_S = 86_400.0  # what was used in the last day is never removed by itself
SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
AGES = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Stage:
    """One stage: its kind, its folder, bytes of its files, and when it was last used, in s."""

    kind: str
    place: Path
    size_bytes: int
    used_s: float


def stages_of(root: Path) -> list[Stage]:
    """Every stage of a store, the one that was used longest ago first; nothing is read of them.

    A file that two stages share counts with the first of them.
    """
    found, counted = [], set[tuple[int, int]]()
    for manifest in root.glob(f"*/??/*/{MANIFEST}"):
        place, size = manifest.parent, 0
        try:
            used = place.stat().st_mtime
            for path in place.rglob("*"):
                at = path.stat()
                if path.is_file() and (at.st_dev, at.st_ino) not in counted:
                    counted.add((at.st_dev, at.st_ino))
                    size += at.st_size
        except FileNotFoundError:  # removed meanwhile
            continue
        found.append(Stage(place.parents[1].name, place, size, used))
    return sorted(found, key=lambda stage: (stage.used_s, stage.place))


def is_unreachable(stage: Stage) -> bool:
    """Whether no command of this version can ask for a stage: it was made by other code.

    False where that cannot be known: of plugins' code, and of stages from before it was noted.
    """
    try:
        manifest: dict[str, Any] = read_json(stage.place / MANIFEST)
        code, modules = manifest["inputs"]["code"], manifest["modules"]
        return not own_code.is_todays(str(code), [str(name) for name in modules])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def to_prune(
    found: Sequence[Stage],
    *,
    unused_s: float | None = None,
    size_bytes: int | None = None,
    unreachable: bool = False,
) -> list[Stage]:
    """Stages that go, of those that are there, the one used longest ago first.

    unused_s: those that nobody used for so long   size_bytes: as many as leave so much
    unreachable: those that `is_unreachable` says
    """
    now = time.time()
    gone = {
        stage.place
        for stage in found
        if (unused_s is not None and now - stage.used_s > unused_s)
        or (unreachable and is_unreachable(stage))
    }
    left = sum(stage.size_bytes for stage in found if stage.place not in gone)
    for stage in found:
        if size_bytes is None or left <= size_bytes:
            break
        if stage.place not in gone:
            gone.add(stage.place)
            left -= stage.size_bytes
    return [stage for stage in found if stage.place in gone]


def limit(root: Path) -> int:
    """Bytes that a store may take: TRINITY_CACHE_SIZE, else half of the disk that it is on."""
    named = os.environ.get(LIMIT)
    return size_of(named, LIMIT) if named else shutil.disk_usage(root).total // 2


def keep_bounded(store: StageStore) -> None:
    """Remove what was used longest ago where a store is larger than `limit`, and say so.

    Not what was used in the last day; nothing while another process uses the store.
    """
    found, most = stages_of(store.root), limit(store.root)
    total = sum(stage.size_bytes for stage in found)
    old = [stage for stage in found if time.time() - stage.used_s > RECENT_S]
    if total <= most or not old:
        return
    spare = total - sum(stage.size_bytes for stage in old)
    gone = to_prune(old, size_bytes=max(most - spare, 0))
    try:
        store.remove(stage.place for stage in gone)
    except MachineError as error:
        logger.info("%s", error)
        return
    logger.warning(
        "the stage store %s held %s, more than the %s that it may (%s): removed the %d stages that "
        "were used longest ago",
        *(store.root, in_units(total), in_units(most), LIMIT, len(gone)),
    )


def size_of(text: str, where: str) -> int:
    """'20GB' in bytes; ConfigError if it is no size."""
    words = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B)?", text.strip(), re.IGNORECASE)
    if words is None:
        msg = f"{where} {text!r}: is no size. Give bytes, or for example 500MB, 20GB or 1TB."
        raise ConfigError(msg)
    return int(float(words[1]) * SIZES[(words[2] or "B").upper()])


def age_of(text: str, where: str) -> float:
    """'30d' in seconds; ConfigError if it is no age."""
    words = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([mhdw])", text.strip())
    if words is None:
        msg = f"{where} {text!r}: is no age. Give for example 90m, 12h, 30d or 8w."
        raise ConfigError(msg)
    return float(words[1]) * AGES[words[2]]


def in_units(size_bytes: int) -> str:
    """'7.1 GB'."""
    unit = next(name for name in reversed(SIZES) if size_bytes >= SIZES[name] or name == "B")
    return f"{size_bytes / SIZES[unit]:.{0 if unit == 'B' else 1}f} {unit}"
