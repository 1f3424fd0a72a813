"""Damaged files are named with the line that is wrong, whatever is wrong with them."""

import gzip
import io
from pathlib import Path

import pytest

from trinity.harness.texts import jsonl
from trinity.methods.errors import ConfigError

PATH = Path("some [folder]/test.jsonl.gz")
ROWS = b'{"text": "one"}\n\n{"text": "zw\xc3\xb6i"}\n'


def read(content: bytes) -> list[tuple[int, jsonl.Row]]:
    return list(jsonl.rows(io.BytesIO(content), PATH))


def test_rows_come_with_the_numbers_of_their_lines() -> None:
    assert read(gzip.compress(ROWS)) == [(1, {"text": "one"}), (3, {"text": "zwöi"})]


def test_a_pair_that_json_spells_by_its_numbers_is_one_letter() -> None:
    assert read(gzip.compress(b'{"text": "\\ud83d\\ude00"}\n')) == [(1, {"text": "\U0001f600"})]


def long_file() -> bytes:
    lines = b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(5000))
    return gzip.compress(lines)


def flipped(content: bytes) -> bytes:
    """The same length, wrong from its tenth byte on: no block of deflate begins so."""
    return content[:10] + b"\xff" * (len(content) - 10)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no rows"),
        (gzip.compress(b""), "holds no rows"),
        (gzip.compress(b"\n \n"), "holds no rows"),
        (gzip.compress(b"9" * 5000), "line 1: is not JSON"),
        (gzip.compress(b"[" * 100_000), "line 1: is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no whole gzip file"),
        (long_file()[:-12], r"is no whole gzip file .*; \d+ lines could be read"),
        (flipped(long_file()), "is no whole gzip file"),
        (gzip.compress(ROWS + b'{"text": \n'), "line 4: is not JSON"),
        (gzip.compress(b'{"text": "\xff"}\n'), "line 1: is not JSON in UTF-8"),
        (gzip.compress(b'{"text": "\\ud800"}\n'), "line 1: is not JSON in UTF-8"),
        (gzip.compress(ROWS + b"[1]\n"), r"line 4: expected an object, found \[1\]"),
    ],
)
def test_damage_is_one_sentence_about_the_file(content: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^some \[folder\]/test\.jsonl\.gz(, |: ){said}"):
        read(content)


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        jsonl.opened(tmp_path)
