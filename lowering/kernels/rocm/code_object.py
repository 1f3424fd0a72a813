"""What an AMD code object says of itself, and whether that is what modules rely on.

IREE's compiler embeds any bytes that it is given, and the driver finds out at best.  So we read the
architecture from the flags of the ELF file, and from its note (LLVM's "User Guide for AMDGPU
Backend", code object V5) what each kernel is called, takes and assumes.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trinity.lowering.kernels.lanes.executable import THREADS, Entry
from trinity.lowering.kernels.rocm.device import ARCHITECTURES
from trinity.methods.errors import LoweringError

MAGIC = b"\x7fELF\x02\x01\x01\x40"  # 64 bits, little end first, of AMD's HSA
HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
MACHINE, NOTES, DYNAMIC_SYMBOLS = 224, 4, 11  # EM_AMDGPU, PT_NOTE, SHT_DYNSYM
METADATA = 32  # NT_AMDGPU_METADATA
WAVES = {"gfx9": 64, "gfx1": 32}  # lanes of a wavefront, by the start of an architecture


@dataclass(frozen=True)
class CodeObject:
    """architecture: None if its number is none of ours   target: as its note has it
    kernels: the metadata of each   symbols: names that a driver can find
    """

    architecture: str | None
    target: str
    kernels: tuple[dict[str, Any], ...]
    symbols: frozenset[str]


def read(code: bytes) -> CodeObject:
    """A code object, which may have other bytes behind it; LoweringError if it is none."""
    try:
        return _read(code)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        msg = f"a code object for ROCm cannot be read ({type(error).__name__}: {error})."
        raise LoweringError(msg) from error


def require(code: bytes, architecture: str, entries: Sequence[Entry]) -> None:
    """LoweringError unless these are our kernels for an architecture, as modules call them."""
    if faults := list(faults_of(read(code), architecture, entries)):
        msg = (
            f"the code object for {architecture} is not what modules call: {'; '.join(faults)}. "
            f"Make it again: python -m trinity.lowering.kernels.rocm.build"
        )
        raise LoweringError(msg)


def faults_of(found: CodeObject, architecture: str, entries: Sequence[Entry]) -> Iterator[str]:
    """What is wrong with our kernels for an architecture."""
    yield from foreign(found, architecture)
    kernels = {kernel[".name"]: kernel for kernel in found.kernels}
    if sorted(kernels) != sorted(entry.name for entry in entries):
        yield f"its kernels are {', '.join(kernels)}"
        return
    for entry in entries:
        name, kernel = entry.name, kernels[entry.name]
        arguments, passed = kernel.get(".args", []), _passed(entry)
        if kernel[".symbol"] not in found.symbols or name not in found.symbols:
            yield f"{name} has no symbol"
        if (taken := _taken(arguments)) != passed or not _packed(arguments):
            yield f"{name} takes {', '.join(f'{kind} of {size} bytes' for kind, size in taken)}"
        if kernel[".kernarg_segment_size"] != sum(size for _, size in passed):
            yield f"{name} takes {kernel['.kernarg_segment_size']} bytes"
        if kernel[".max_flat_workgroup_size"] != THREADS:
            yield f"{name} is for {kernel['.max_flat_workgroup_size']} threads"
        if kernel[".wavefront_size"] != WAVES[architecture[:4]]:
            yield f"{name} is for wavefronts of {kernel['.wavefront_size']} lanes"


def foreign(found: CodeObject, architecture: str) -> Iterator[str]:
    """Why a code object, ours or the compiler's, is none for an architecture."""
    if found.architecture != architecture:
        yield f"its ELF flags are of {found.architecture or 'an architecture that is not ours'}"
    # clang writes `amdgcn-amd-amdhsa--gfx942`, IREE another triple; features may stand behind.
    if found.target.partition(":")[0].rpartition("-")[2] != architecture:
        yield f"its note says {found.target}"


def inside(module: bytes) -> list[CodeObject]:
    """Every code object that a compiled module holds."""
    places, at = [], module.find(MAGIC)
    while at >= 0:
        places.append(at)
        at = module.find(MAGIC, at + 1)
    return [read(module[place:]) for place in places]


def _passed(entry: Entry) -> tuple[tuple[str, int], ...]:
    """As IREE's runtime passes arguments: pointers in the order of bindings, then numbers."""
    return (*[("global_buffer", 8)] * entry.bindings, *[("by_value", 4)] * entry.numbers)


def _taken(arguments: Sequence[dict[str, Any]]) -> tuple[tuple[str, int], ...]:
    return tuple((one[".value_kind"], one[".size"]) for one in arguments)


def _packed(arguments: Sequence[dict[str, Any]]) -> bool:
    """Whether each stands right behind the one before."""
    ends = [one[".offset"] + one[".size"] for one in arguments]
    return [one[".offset"] for one in arguments] == [0, *ends[:-1]]


def _read(code: bytes) -> CodeObject:
    found = HEADER.unpack_from(code)
    machine, segments_at, sections_at, flags = found[1], found[4], found[5], found[6]
    segment_count, section_count = found[9], found[11]
    if not code.startswith(MAGIC) or machine != MACHINE:
        raise LoweringError("a code object for ROCm is no ELF file of AMD's.")
    about: dict[str, Any] = {}
    for i in range(segment_count):
        kind, _, start, _, _, size, _, _ = SEGMENT.unpack_from(code, segments_at + i * SEGMENT.size)
        if kind == NOTES:
            about = _metadata(code[start : start + size]) or about
    sections = [
        SECTION.unpack_from(code, sections_at + i * SECTION.size) for i in range(section_count)
    ]
    symbols = set()
    for section in sections:
        if section[1] == DYNAMIC_SYMBOLS:
            names = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], SYMBOL.size):
                start = names + SYMBOL.unpack_from(code, at)[0]
                symbols.add(code[start : code.index(b"\0", start)].decode())
    numbers = {number: name for name, number in ARCHITECTURES.items()}
    kernels = tuple(about["amdhsa.kernels"])
    return CodeObject(
        numbers.get(flags & 0xFF), about["amdhsa.target"], kernels, frozenset(symbols)
    )


def _metadata(notes: bytes) -> dict[str, Any] | None:
    """The metadata among notes: a name's and a description's size, a type, and both."""
    at = 0
    while at < len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        start = name_at + -(-name_size // 4) * 4
        if notes[name_at : name_at + name_size] == b"AMDGPU\0" and kind == METADATA:
            found, _ = _unpacked(notes, start)
            return dict(found)
        at = start + -(-size // 4) * 4
    return None


# MessagePack's types of one first byte: how the number behind it is written.
NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i"}
STRINGS, LISTS, MAPS = {0xD9: ">B", 0xDA: ">H"}, {0xDC: ">H"}, {0xDE: ">H"}
WORDS = {0xC0: None, 0xC2: False, 0xC3: True}


def _unpacked(data: bytes, at: int) -> tuple[Any, int]:
    """A value of MessagePack's, as far as code objects use it, and the place behind it."""
    first = data[at]
    at += 1
    if first < 0x80 or first in WORDS:
        return WORDS.get(first, first), at
    if first in NUMBERS:
        return struct.unpack_from(NUMBERS[first], data, at)[0], at + struct.calcsize(NUMBERS[first])
    if first < 0xC0:
        size = first & 0x1F if first >= 0xA0 else first & 0x0F
    else:
        form = {**STRINGS, **LISTS, **MAPS}[first]
        (size,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
    if first in STRINGS or 0xA0 <= first < 0xC0:
        return data[at : at + size].decode(), at + size
    found = []
    is_map = first in MAPS or first < 0x90
    for _ in range(2 * size if is_map else size):
        value, at = _unpacked(data, at)
        found.append(value)
    return (dict(zip(found[::2], found[1::2], strict=True)) if is_map else found), at
