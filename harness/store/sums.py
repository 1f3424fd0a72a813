"""Checksums of a folder that a user has: what became of its files on the way is found when read.

`SHA256SUMS` is as coreutils has it, so `sha256sum -c SHA256SUMS` checks a folder without us.  It is
no signature: it finds damage, not a person who writes a new sum beside a new file.
"""

import hashlib
from pathlib import Path

from trinity.harness.store.stages import file_sha256
from trinity.harness.store.writing import write_text

SUMS = "SHA256SUMS"

# What this process has found whole: the sums' own hash, and each file's number, size and time.
_whole: dict[Path, tuple[object, ...]] = {}


def write(folder: Path) -> None:
    """Note the sums of all files of a folder in it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names if name != SUMS]
    write_text(folder / SUMS, "".join(lines))


def damage(folder: Path) -> str | None:
    """What is wrong with a folder's files, None if they are whole or the folder has no sums.

    Files that the sums do not name are the user's.  Whole files are read once in a process, unless
    they are touched.
    """
    try:
        text = (folder / SUMS).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{SUMS}: {error.strerror}"
    state = (hashlib.sha256(text).hexdigest(), *_states(folder))
    if _whole.get(folder.absolute()) == state:
        return None
    for line in text.decode("utf-8", errors="replace").splitlines():
        expected, separator, name = line.partition("  ")
        path = Path(name)
        if not separator or not name or path.is_absolute() or ".." in path.parts:
            return f"{SUMS} is damaged: it has a line {line[:80]!r}"
        try:
            found = file_sha256(folder / path)
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({getattr(error, 'strerror', error)})"
        if found != expected:
            return f"{name} has another hash than {SUMS} says"
    _whole[folder.absolute()] = state
    return None


def _states(folder: Path) -> list[tuple[str, int, int, int]]:
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path.name, at.st_ino, at.st_size, at.st_mtime_ns) for path, at in found]
