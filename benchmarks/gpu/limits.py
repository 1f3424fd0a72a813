"""Which limit of a GPU comes first in the loops of our CUDA kernels: counted, not measured.

From what ptxas and nvdisasm say of the kernels for up to 8 tokens, and of the same source compiled
for one format alone.  Needs nvcc, ptxas and nvdisasm (`pip install nvidia-cuda-nvdisasm`; it lands
in `site-packages/nvidia/cu13/bin`), and no GPU.

    python -m benchmarks.gpu.limits --nvdisasm PATH --json results/notes/cuda-limits.json
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trinity.lowering.kernels.cuda.build import nvcc_version
from trinity.lowering.kernels.cuda.device import OBJECTS

THREADS, SHARED_BYTES = 512, 49152  # of a block of the kernels for up to 8 tokens
SCHEDULERS = 4  # of a multiprocessor; each issues one instruction of a warp a cycle
BANKS_BYTES = 128  # that shared memory reads or writes a cycle
REGISTERS = 65536
GROUP_BLOCKS = 4  # 128 inputs share a scale


@dataclass(frozen=True)
class Gpu:
    """Nominal numbers of a GPU, as its maker gives them.

    bytes_per_s: of its memory   shared_bytes, warps: that a multiprocessor has room for
    mma_cycles: of a scheduler's tensor core, for 16 x 8 x 16 products with float32 sums
    """

    name: str
    processors: int
    hertz: float
    bytes_per_s: float
    shared_bytes: int
    warps: int
    mma_cycles: int

    @property
    def bytes_per_cycle(self) -> float:
        """Of one multiprocessor."""
        return self.bytes_per_s / self.processors / self.hertz


GPUS = {
    "sm_80": Gpu("A100 80 GB", 108, 1.41e9, 2.039e12, 164 << 10, 64, 8),
    "sm_90": Gpu("H100 SXM", 132, 1.83e9, 3.35e12, 228 << 10, 64, 4),
    "sm_120": Gpu("RTX 5090", 170, 2.407e9, 1.792e12, 100 << 10, 48, 32),
}
# Kind in terms.cuh, and bytes of a warp's unit of weights with its scales: 32 outputs and 64 inputs
# of int4, 128 of 2:4, 32 of float16.
FORMATS = {
    "int4 group 128": ("CODES", 1024 + 32),
    "2:4 int4 group 128": ("TWO_FOUR", 1536 + 64),
    "float16": ("FLOAT16", 2048),
}
COPIES = {"CODES": 2, "TWO_FOUR": 3, "FLOAT16": 4}  # of 16 bytes a thread, in a unit
# One format of `product.cuh`: what the compiler need not keep for others is gone.
SOURCE = """#include "product.cuh"
extern "C" __global__ void __launch_bounds__(Block<1>::WARPS * 32, Block<1>::RESIDENT)
one(const uint4* __restrict__ x, const uint4* __restrict__ weight, const uint4* __restrict__ places,
    const void* __restrict__ scale, void* __restrict__ out, int rows, int tokens, int blocks) {
  __shared__ uint4 shared[Block<1>::WARPS * Block<1>::RING];
  const Term none{x, weight, places, scale, nullptr, NONE, 0, 1, 0};
  product<ONE_WIDE, 1>(shared, Term{x, weight, places, scale, nullptr, ONE_KIND, blocks, SPAN, 1},
                       none, Shape{rows, tokens, 0}, out);
}
"""


@dataclass(frozen=True)
class Instruction:
    """labels: where it stands   word: the operation   operands: behind it
    target: the label that it jumps to   always: whether no predicate decides that
    """

    labels: tuple[str, ...]
    word: str
    operands: str
    target: str | None
    always: bool


def main() -> None:
    """Count, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nvdisasm", default="nvdisasm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = {
        "schema": "cuda-limits/1",
        "nvcc": nvcc_version(),
        "counts": counted(options.nvdisasm),
    }
    print(markdown(record), end="")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


def counted(nvdisasm: str) -> list[dict[str, Any]]:
    """Of every architecture, format and type of activations: registers, and what a unit takes."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in GPUS:
            for bits in (16, 32):
                shipped = assembled(OBJECTS / f"product_f{bits}_1.ptx", architecture, Path(folder))
                text = instructions(disassembled(nvdisasm, shipped[0]))
                for label, (kind, size) in FORMATS.items():
                    alone = compiled(kind, bits == 32, architecture, Path(folder))
                    (loop,) = mma_loops(instructions(disassembled(nvdisasm, alone[0])))
                    counts = per_kb(loop, size, COPIES[kind])
                    found.append(
                        {
                            "architecture": architecture,
                            "activations": f"float{bits}",
                            "format": label,
                            "registers": {"shipped": shipped[1], "alone": alone[1]},
                            "per_kb": counts,
                            "shipped_at_least": shortest(text, kind, size, bits),
                        }
                    )
    return found


def assembled(ptx: Path, architecture: str, folder: Path) -> tuple[Path, int]:
    """A cubin of PTX, and the registers of a thread."""
    made = folder / "shipped.cubin"
    command = ["ptxas", "-v", f"-arch={architecture}", str(ptx), "-o", str(made)]
    return made, registers(command)


def compiled(kind: str, wide: bool, architecture: str, folder: Path) -> tuple[Path, int]:
    """A cubin of the source for one format, and the registers of a thread."""
    source, made = folder / "one.cu", folder / "one.cubin"
    source.write_text(SOURCE, "utf-8")
    defined = [f"-DONE_KIND={kind}", f"-DONE_WIDE={str(wide).lower()}", f"-DSPAN={GROUP_BLOCKS}"]
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-std=c++17", "-O3", "-Xptxas", "-v"]
    return made, registers([*command, *defined, f"-I{OBJECTS}", str(source), "-o", str(made)])


def registers(command: Sequence[str]) -> int:
    """What the assembler says that a thread uses."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    (used,) = re.findall(r"Used (\d+) registers", done.stderr)
    return int(used)


def disassembled(nvdisasm: str, cubin: Path) -> str:
    """Text of a cubin."""
    command = [nvdisasm, "-c", str(cubin)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


LINE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ +)?([A-Z][\w.]*)(.*);")


def instructions(text: str) -> list[Instruction]:
    """The instructions of a disassembly, in order."""
    found, labels = [], list[str]()
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels.append(label[1])
        elif code := LINE.match(line):
            jump = re.search(r"`\((\.L_x_\d+)\)", code[3]) if code[2] == "BRA" else None
            always = code[1] is None and not re.match(r"\s*!?U?P\d", code[3])
            target = jump[1] if jump else None
            found.append(Instruction(tuple(labels), code[2], code[3], target, always))
            labels = []
    return found


def mma_loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The innermost loops with tensor-core products: from a label to the jump back to it."""
    places = {label: i for i, one in enumerate(code) for label in one.labels}
    spans = []
    for end, one in enumerate(code):
        start = places.get(one.target or "", end + 1)
        if start <= end and any(of.word.startswith("HMMA") for of in code[start : end + 1]):
            spans.append((start, end))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [list(code[start : end + 1]) for start, end in inner]


def per_kb(loop: Sequence[Instruction], size: int, copies: int) -> dict[str, float]:
    """What 1024 bytes of weights take in a loop of one format, all jumps forward not taken: each
    of them leaves something out at the end of a row.

    size, copies: of one unit
    """
    words = [one.word for one in loop]
    # An assembler puts reads that are never done (`@!PT LDS RZ, [RZ]`) in front of copies.
    reads = sum(word.startswith("LDS.") for word in words)
    writes = sum(word.startswith("LDGSTS") for word in words)
    kb = writes / copies * size / 1024
    return {
        "instructions": len(words) / kb,
        "products": sum(word.startswith("HMMA") for word in words) / kb,
        "shared_bytes": 512 * (reads + writes) / kb,
    }


def shortest(code: Sequence[Instruction], kind: str, size: int, bits: int) -> float:
    """Instructions a KB of the shortest way through the loop of a kind in a kernel for all, on
    which every product, copy and read of shared memory is made.
    """
    # Both terms of a kernel may be of one kind; the first is the base's.
    loop = next(of for of in mma_loops(code) if kind_of(of) == (kind, bits))
    _, length = way(loop)
    units = sum(one.word.startswith("LDGSTS") for one in loop) / COPIES[kind]
    return length / (units * size / 1024)


def kind_of(loop: Sequence[Instruction]) -> tuple[str, int]:
    """What a loop multiplies: the weights' kind, and bits of the activations."""
    products = [one for one in loop if one.word.startswith("HMMA")]
    bits = 32 if any("BF16" in one.word for one in products) else 16
    if any("HMMA.SP" in one.word for one in products):
        return "TWO_FOUR", bits
    codes = any("0xf000f" in one.operands for one in loop)
    return "CODES" if codes else "FLOAT16", bits


WORK = ("HMMA", "LDGSTS", "LDS.")


def way(loop: Sequence[Instruction]) -> tuple[int, int]:
    """Of the ways from a loop's start to its end that do the most work, the shortest.

    -> instructions that do work, instructions
    """
    places = {label: i for i, one in enumerate(loop) for label in one.labels}
    best: list[tuple[int, int] | None] = [None] * len(loop)
    best[-1] = (0, -1)
    for i in range(len(loop) - 2, -1, -1):
        one = loop[i]
        target = places.get(one.target or "")
        nexts = [target] if target is not None and target > i else []
        if not (nexts and one.always):
            nexts.append(i + 1)
        ways = [found for place in nexts if (found := best[place]) is not None]
        if ways:
            work, negative = max(ways)
            best[i] = (work + one.word.startswith(WORK), negative - 1)
    work, negative = best[0] or (0, 0)
    return work, -negative


def limits(count: Mapping[str, Any], gpu: Gpu) -> dict[str, float]:
    """Cycles of a multiprocessor for 1 KB of weights, by what they wait for.

    Instructions: the larger of both counts, for the kernel that is there is the one for all.
    """
    found = count["per_kb"]
    return {
        "bytes": 1024 / gpu.bytes_per_cycle,
        "instructions": max(found["instructions"], count["shipped_at_least"]) / SCHEDULERS,
        "tensor cores": found["products"] * gpu.mma_cycles / SCHEDULERS,
        "shared memory": found["shared_bytes"] / BANKS_BYTES,
    }


def warps(used: int, gpu: Gpu) -> int:
    """That a multiprocessor holds at once, by registers, shared memory and its own limit."""
    of_registers = REGISTERS // (-(-used // 8) * 8 * THREADS)
    blocks = min(of_registers, gpu.shared_bytes // (SHARED_BYTES + 1024), gpu.warps * 32 // THREADS)
    return blocks * THREADS // 32


def markdown(record: Mapping[str, Any]) -> str:
    """A row a GPU, type of activations and format."""
    lines = [
        "| GPU | activations | format | instructions a KB | in the kernel for all | registers "
        "| warps | bytes | instructions | tensor cores | shared memory | first |",
        f"|---|---|---|{'---:|' * 8}---|",
    ]
    for count in record["counts"]:
        gpu = GPUS[count["architecture"]]
        found = limits(count, gpu)
        used = count["registers"]["shipped"]
        cells = [f"{gpu.name} ({count['architecture']})", count["activations"], count["format"]]
        cells.append(f"{count['per_kb']['instructions']:.0f}")
        cells.append(f"{count['shipped_at_least']:.0f} or more")
        cells += [str(used), f"{warps(used, gpu)} of {gpu.warps}"]
        cells += [f"{cycles:.0f}" for cycles in found.values()]
        cells.append(max(found, key=lambda name: found[name]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
