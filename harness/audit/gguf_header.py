"""Whether a GGUF header can be what it says, told before the library reads it: that makes an object
of every entry that a header claims, also of those that no file could hold.
"""

import mmap
import struct
from pathlib import Path

MAGIC, VERSIONS = b"GGUF", (2, 3)  # others are the library's to refuse
STRING, ARRAY = 8, 9
# Bytes of a value of the other kinds, by their numbers in the format.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
DIMENSIONS = 4  # GGML_MAX_DIMS
KEY = (1 << 16) - 1  # bytes of a name, as the format has it
LARGEST = 1 << 22  # entries of all arrays: sixteen vocabularies of 262,144, the largest there is


def check(path: Path) -> None:
    """ValueError if entries lie beyond the end of the file, or are more than any model has."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Header(content).walk()


class _Header:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at, self._entries, self._order = content, 0, 0, "<"

    def walk(self) -> None:
        if self._content[:4] != MAGIC:
            return
        self._at = 4
        version = self._number("I")
        if not version & 0xFFFF:  # of a machine of the other order
            self._order, self._at = ">", 4
            version = self._number("I")
        if version not in VERSIONS:
            return
        tensors, values = self._number("Q"), self._number("Q")
        for _ in range(self._counted(values)):
            self._text(KEY)
            self._value(self._number("I"))
        for _ in range(self._counted(tensors)):
            self._text(KEY)
            sides = self._number("I")
            if sides > DIMENSIONS:
                msg = f"a tensor has {sides} dimensions, and {DIMENSIONS} is the most"
                raise ValueError(msg)
            self._skip(8 * sides + 4)  # its sides and its type
            place = self._number("Q")  # from the end of the header on
            if self._at + place > len(self._content):
                msg = f"a tensor begins {place} bytes after its header"
                raise ValueError(msg)

    def _value(self, kind: int) -> None:
        if kind == STRING:
            self._text()
        elif kind == ARRAY:
            self._array()
        else:
            self._skip(_size(kind))

    def _array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind == STRING:
            for _ in range(self._counted(count)):
                self._text()
        else:
            self._skip(self._counted(count) * _size(kind))

    def _text(self, longest: int | None = None) -> None:
        size = self._number("Q")
        if longest is not None and size > longest:
            msg = f"a name has {size} bytes, and {longest} is the most"
            raise ValueError(msg)
        self._skip(size)

    def _counted(self, count: int) -> int:
        self._entries += count
        if self._entries > LARGEST:
            msg = f"its header lists {self._entries} entries, more than any model has"
            raise ValueError(msg)
        return count

    def _number(self, form: str) -> int:
        at = self._at
        self._skip(struct.calcsize(form))
        (number,) = struct.unpack_from(self._order + form, self._content, at)
        return int(number)

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._content):
            msg = f"its header goes on to byte {self._at}"
            raise ValueError(msg)


def _size(kind: int) -> int:
    if kind not in SIZES:  # also an array in an array, which no program writes
        msg = f"a value is of kind {kind}, which there is not"
        raise ValueError(msg)
    return SIZES[kind]
