import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.harness.audit import written
from trinity.harness.audit import gguf_header
from trinity.harness.audit.audit import audit
from trinity.methods.errors import ConfigError

UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


def _file(kind: int, value: bytes, tensors: bytes = b"", count: int = 0) -> bytes:
    """A GGUF whose metadata is one value."""
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, count, 1)
        + _text(b"a")
        + (struct.pack("<I", kind) + value + tensors + bytes(64))
    )


def _tensor(name: bytes, sides: tuple[int, ...], place: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, 0, place)


def test_what_writers_make_is_let_through(tmp_path: Path) -> None:
    from gguf import GGUFEndian, GGUFWriter  # slow to load, and used here only

    for order in GGUFEndian:
        path = tmp_path / f"{order.name}.gguf"
        writer = GGUFWriter(path, "llama", endianess=order)
        writer.add_token_list(["a", "", "\u00e9"])
        writer.add_token_scores([0.5, 1.5, 2.5])
        writer.add_array("sides", [1 << 30, 2])
        writer.add_bool("yes", True)
        writer.add_float64("wide", 0.25)
        writer.add_tensor("weight", np.zeros((2, 3, 4, 5), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        gguf_header.check(path)


DAMAGED: dict[str, Callable[[], bytes]] = {
    "an array longer than the file": lambda: _file(ARRAY, _array(UINT8, 1 << 40)),
    "an array of longest texts": lambda: _file(ARRAY, _array(STRING, (1 << 64) - 1)),
    "arrays in arrays": lambda: _file(ARRAY, _array(ARRAY, 1) * 5000),
    "a kind that there is not": lambda: _file(77, b""),
    "a text longer than the file": lambda: _file(STRING, struct.pack("<Q", 1 << 62)),
    "more tensors than fit": lambda: _file(UINT8, b"\0", count=1 << 60),
    "a long name": lambda: _file(UINT8, b"\0", _tensor(b"a" * (1 << 16), (2, 2)), 1),
    "a tensor before its header": lambda: _file(
        UINT8, b"\0", _tensor(b"a", (2, 2), (1 << 64) - 32), 1
    ),
    "many sides": lambda: _file(UINT8, b"\0", _tensor(b"a", (1,) * 40), 1),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_header_that_claims_too_much_is_refused_before_an_entry_is_made(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    def never(path: Path) -> None:
        pytest.fail("the library was asked")

    monkeypatch.setattr(gguf, "GGUFReader", never)
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGED[what]())
    with pytest.raises(ConfigError, match="damaged or cut short"):
        audit(path)


def test_more_entries_than_any_model_has_are_refused_though_the_file_holds_them(
    tmp_path: Path,
) -> None:
    path, count = tmp_path / "model.gguf", gguf_header.LARGEST + 1
    path.write_bytes(_file(ARRAY, _array(UINT8, count, bytes(count))))
    with pytest.raises(ConfigError, match="more than any model"):
        audit(path)


@pytest.mark.parametrize("sides", [(32, 0), (0, 2)])
def test_a_matrix_without_values_is_refused(sides: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(_file(UINT8, b"\0", _tensor(b"blk.0.attn_q.weight", sides), 1))
    with pytest.raises(ConfigError, match=r"'blk\.0\.attn_q\.weight' has no values"):
        audit(path)


def test_two_billion_blocks_are_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written.gguf(path)
    content = path.read_bytes()
    key = b"llama.block_count" + struct.pack("<I", UINT32)
    before = key + struct.pack("<I", written.BLOCKS)
    assert before in content
    path.write_bytes(content.replace(before, key + struct.pack("<I", 1 << 31)))
    (fault,) = audit(path).faults
    assert fault.layer == f"blocks {written.BLOCKS} to {(1 << 31) - 1}"
    assert fault.what == "hold no matrix at all"
