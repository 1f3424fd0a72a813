"""Rows of gzip JSON lines, read by ourselves: no cache between the file and the number.

`datasets` would keep what it read under the file's path and time, and read brackets in a path as a
pattern.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trinity.methods.errors import ConfigError

Row = dict[str, Any]


def rows(stream: IO[bytes], path: Path) -> Iterator[tuple[int, Row]]:
    """Every object with the number of its line; ConfigError says which line of which file is
    damaged.

    stream: the file's bytes, compressed
    """
    number = rows = 0
    try:
        with gzip.open(stream) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line.decode("utf-8"))
                if b"\\ud" in line.lower():
                    # Half of a pair that JSON spells by its number: no text has it.
                    json.dumps(row, ensure_ascii=False).encode("utf-8")
                if not isinstance(row, dict):
                    msg = f"{path}, line {number}: expected an object, found {_short(row)}."
                    raise ConfigError(msg)
                rows += 1
                yield number, row
    except (ValueError, RecursionError) as error:
        msg = f"{path}, line {number}: is not JSON in UTF-8 ({error}). Replace the file."
        raise ConfigError(msg) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        msg = (
            f"{path}: is no whole gzip file ({error}; {number} lines could be read). It was cut "
            f"short or damaged on its way: get it again, or remove it."
        )
        raise ConfigError(msg) from error
    if rows == 0:
        msg = f"{path}: holds no rows. Get it again, or remove it."
        raise ConfigError(msg)


def opened(path: Path) -> IO[bytes]:
    """The file's bytes; ConfigError if it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})."
        raise ConfigError(msg) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
