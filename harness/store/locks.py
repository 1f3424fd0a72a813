"""Locks that the kernel releases: a lock is an open file, and goes when its process does.

Whatever ends the process, and whichever container it is in: a process number would mean nothing
there, because containers that share a folder have numbers of their own.  The locks are flock(2)'s,
which also hold on NFS and, where it is mounted with `flock`, on Lustre.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class NoLocksError(OSError):
    """The file system has no locks: nobody can know whether a file is in use."""


@dataclass(frozen=True)
class Lock:
    """A file that this process alone holds.

    process: that took it; a fork has the same open file, and must not release it for its parent
    """

    path: Path
    descriptor: int
    process: int

    def release(self) -> None:
        """Let go, and leave no file behind."""
        # While it is still held: whoever waits for the file sees that it is gone.
        if os.getpid() == self.process and _is(self.path, self.descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.let_go()

    def let_go(self) -> None:
        """Let go of the file, which stays."""
        if os.getpid() == self.process:
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


def take(path: Path) -> Lock | None:
    """The lock of a file, made if missing; None if another holds it.

    NoLocksError if the file system has none, another OSError if the file cannot be made.
    """
    return _take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def take_within(seconds: float, path: Path) -> Lock | None:
    """As `take`, tried for some time."""
    until = time.monotonic() + seconds
    lock = take(path)
    while lock is None and time.monotonic() < until:
        time.sleep(0.05)
        lock = take(path)
    return lock


def wait(path: Path) -> Lock:
    """The lock of a file, as soon as no other holds it; errors as of `take`."""
    lock = _take(path, fcntl.LOCK_EX)
    assert lock is not None
    return lock


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether a file's lock is had for as long as this lasts: False while another has it, True too
    where nobody can know.
    """
    lock, known = None, True
    try:
        path.parent.mkdir(exist_ok=True)
        lock = take(path)
    except OSError:  # whoever makes what is claimed is told why
        known = False
    try:
        yield lock is not None or not known
    finally:
        if lock is not None:
            lock.release()


def holder(path: Path) -> str:
    """Who says in the file that it holds the lock: to be read by people, not to be relied on."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _take(path: Path, operation: int) -> Lock | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                msg = "the file system has no locks"
                raise NoLocksError(error.errno, msg, str(path)) from error
            raise
        except BaseException:  # Ctrl-C while waiting
            os.close(descriptor)
            raise
        # Whoever held it has removed the file by now; a lock on a file without a name is none.
        if _is(path, descriptor):
            _sign(descriptor)
            return Lock(path, descriptor, os.getpid())
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
    with contextlib.suppress(OSError):  # a full disk takes no text, and the lock holds without
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
