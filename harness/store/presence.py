"""Which processes use a store: each holds the lock of a file of its own in `here`.

So a reader needs no lock on each of the thousands of stages that it reads, and whoever removes
something knows whether anybody may be reading it.
"""

import contextlib
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trinity.harness.store import locks
from trinity.methods.errors import MachineError

logger = logging.getLogger(__name__)

HERE, GATE = "here", "gate"


@dataclass(frozen=True)
class Presence:
    """This process in a store.  lock: of its own file, to be released when it reads no more"""

    root: Path
    lock: locks.Lock

    def first_other(self) -> int | None:
        """When the first of the others came that are here, in ns; None if nobody else is."""
        arrived = [_arrived(path) for path in self._others()]
        return min((when for when in arrived if when is not None), default=None)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else is in the store meanwhile, nor comes; MachineError if somebody is."""
        gate = locks.wait(self.root / GATE)
        try:
            for path in self._others():
                if _arrived(path) is not None:
                    msg = (
                        f"{self.root}: is in use by {locks.holder(path)}. Prune it when that has "
                        f"ended: no stage is deleted under a reader."
                    )
                    raise MachineError(msg)
            yield
        finally:
            gate.release()

    def _others(self) -> list[Path]:
        return [path for path in (self.root / HERE).iterdir() if path != self.lock.path]


def arrive(root: Path) -> Presence | None:
    """Say, by the lock of a file, that a process is here that may read any stage.

    None without locks, or where the store cannot be written.
    """
    try:
        (root / HERE).mkdir(exist_ok=True)
        gate = locks.wait(root / GATE)  # whoever prunes has it, for an instant
        try:
            return Presence(root, locks.wait(root / HERE / secrets.token_hex(8)))
        finally:
            gate.release()
    except locks.NoLocksError:
        logger.warning(
            "%s: this file system has no locks: processes that share it may make a stage "
            "twice, and what killed ones leave in `scratch` stays there",
            root,
        )
    except OSError as error:  # it cannot be written, which matters once a stage is missing
        logger.info("%s cannot be written: %s", root, error)
    return None


def _arrived(path: Path) -> int | None:
    """When the process came that holds a file of `here`, in ns; None if it is gone."""
    lock = locks.take(path)
    if lock is None:
        return path.stat().st_mtime_ns
    lock.release()
    return None
