"""A file layer that fails, or ends the process, at one of its calls: each call in turn is tried."""

import builtins
import errno
import fcntl
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync")),
    *((os, name) for name in ("chmod", "utime", "truncate", "pwrite", "open")),
    (io, "open"),
    (builtins, "open"),
    (fcntl, "flock"),
    (shutil, "copyfile"),
)


class Layer:
    """Counts the calls that change files; `at` says what happens at the call of a number."""

    def __init__(self, number: int, happens: Callable[[str | None], None]) -> None:
        """number: of the call, from 0   happens: then, before the call; given the file's name"""
        self.number, self.happens, self.calls = number, happens, 0

    @contextmanager
    def here(self) -> Iterator["Layer"]:
        """The layer is between this process and its files."""
        before = [(owner, name, getattr(owner, name)) for owner, name in CALLS]
        for owner, name, call in before:
            setattr(owner, name, self._counted(call, name))
        try:
            yield self
        finally:
            for owner, name, call in before:
                setattr(owner, name, call)

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if name != "open" or _writes(arguments, options):
                self.calls += 1
                if self.calls == self.number + 1:
                    named = isinstance(arguments[0], (str, os.PathLike))
                    self.happens(os.fspath(arguments[0]) if named else None)
            return call(*arguments, **options)

        return counted


def _writes(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    how = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
    if isinstance(how, int):
        return bool(how & (os.O_WRONLY | os.O_RDWR))
    return any(letter in how for letter in "wxa+")


def kill(name: str | None) -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(name: str | None) -> None:
    """As a disk without room says it."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


def denied(name: str | None) -> None:
    """As a folder says it whose mode was changed."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
