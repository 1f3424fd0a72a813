"""The CUDA kernels on the CPU: the same source, compiled by g++ against `emulation.h`.

Sanitizers see every access outside of a buffer and every misaligned one.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.made_once import made_once
from trinity.lowering.kernels.cuda.device import OBJECTS
from trinity.lowering.kernels.cuda.launch import DIGITS, Launch, Term, launches
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.padded_panels import BLOCK

HERE = Path(__file__).parent
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiled(factory: pytest.TempPathFactory) -> Path:
    """The program that runs one kernel."""
    return made_once(factory, "cuda-emulated", _compile) / "run"


def _compile(folder: Path) -> None:
    command = ["g++", "-std=c++17", "-O1", "-DTRINITY_EMULATED", "-Wall", "-Werror"]
    command += ["-Wno-unknown-pragmas", f"-I{HERE}", f"-I{OBJECTS}", *SANITIZERS]
    done = subprocess.run(
        [*command, str(HERE / "run.cpp"), "-o", str(folder / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000]


def product(
    program: Path, tiles: Tiles, stored: Mapping[str, Tensor], x: Tensor, dtype: str
) -> Tensor:
    """What the kernels of a linear make of x.  x: [rows, in], float32 -> [rows, out], float32"""
    result = torch.empty(0)
    for launch in launches(tiles, len(x), dtype):
        operands = []
        for term in launch.terms:
            low = term.source == "low"
            operands.append(result if low else activations(term, x, stored))
            operands += [stored[name] for name in term.stored]
        result = run(program, launch, operands)
    return result


def run(program: Path, launch: Launch, operands: list[Tensor]) -> Tensor:
    """One launch; memory that nothing writes is NaN, or what is no digit of a number."""
    shape, dtype = launch.result
    result = torch.full(shape, float("nan")) if dtype.is_floating_point else torch.full(shape, -1)
    buffers = [*operands, result.to(dtype)]
    data = [buffer.contiguous().flatten().view(torch.uint8).numpy().tobytes() for buffer in buffers]
    numbers = [launch.threads, *launch.grid, *launch.constants, *map(len, data)]
    head = " ".join([launch.entry, *map(str, numbers)]) + "\n"
    given = head.encode() + b"".join(data)
    done = subprocess.run([str(program)], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    return torch.frombuffer(bytearray(done.stdout), dtype=dtype).view(shape)


def activations(term: Term, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """As `linear.activations`, in torch, element by element.

    -> [blocks, digits, rows, 4 threads, 4 registers, 2]
    """
    tiles, rows = term.tiles, len(x)
    if "input_scale" in tiles.shapes():
        x = x * stored[f"{term.prefix}input_scale"].float()
    full = torch.zeros(rows, tiles.groups, tiles.span * BLOCK)
    full[:, :, : tiles.group] = x.view(rows, tiles.groups, tiles.group)
    parts = digits(full) if term.digits else full.to(torch.float16)[None]
    blocks = parts.view(len(parts), rows, tiles.blocks, BLOCK).permute(2, 0, 1, 3)
    places = [8 * r + 2 * t + e for t in range(4) for r in range(4) for e in range(2)]
    return blocks[..., places].contiguous()


def digits(x: Tensor) -> Tensor:
    """Three bfloat16 numbers that add up to a float32.  -> [digits, ...], bfloat16"""
    found = []
    for _ in range(DIGITS):
        top = (x.view(torch.int32) & -65536).view(torch.float32)
        found.append(top.to(torch.bfloat16))
        x = x - top
    assert not x.any()
    return torch.stack(found)
