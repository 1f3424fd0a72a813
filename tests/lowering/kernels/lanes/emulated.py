"""`product.cuh` on the CPU: the source that GPUs' compilers get, compiled by g++ against
`emulation.h`, with sanitizers that see every access outside of a buffer.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lowering.kernels.cuda.emulated import SANITIZERS
from tests.made_once import made_once
from trinity.lowering.kernels import lanes
from trinity.lowering.kernels.cuda import device as cuda
from trinity.lowering.kernels.lanes.launch import Launch, launches
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.rocm.device import OBJECTS
from trinity.lowering.kernels.strips import Strips

HERE = Path(__file__).parent


def compiled(factory: pytest.TempPathFactory, source: str = "run") -> Path:
    """The program that runs one kernel.  Emulated, both makers' instructions are the same."""
    made = made_once(factory, f"lanes-emulated-{source}", lambda to: _compile(source, to))
    return made / "run"


def _compile(source: str, folder: Path) -> None:
    command = ["g++", "-std=c++17", "-O1", "-DTRINITY_EMULATED", "-Wall", "-Werror"]
    command += ["-Wno-unknown-pragmas", *SANITIZERS]
    folders = (HERE.parent / "cuda", *lanes.__path__, OBJECTS, cuda.OBJECTS)
    command += [f"-I{path}" for path in folders]
    done = subprocess.run(
        [*command, str(HERE / f"{source}.cpp"), "-o", str(folder / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000]


def product(program: Path, strips: Strips, stored: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the kernels of a linear make of x.  x: [rows, in], float32 -> [rows, out], float32"""
    made: dict[Launch, Tensor] = {}
    low = torch.empty(0)
    for launch in launches(strips, len(x)):
        given = low if launch.prefix == "B_" else padded(launch, x, stored)
        before = made[launch.after] if launch.after else given
        made[launch] = low = run(program, launch, [given, stored[launch.tensor], before])
    return torch.cat([of for launch, of in made.items() if not launch.prefix], dim=1)


def run(program: Path, launch: Launch, operands: list[Tensor]) -> Tensor:
    """One launch; memory that nothing writes is NaN."""
    result = torch.full((launch.tokens, launch.outputs), float("nan"))
    buffers = [*operands, result]
    data = [buffer.contiguous().flatten().view(torch.uint8).numpy().tobytes() for buffer in buffers]
    numbers = [*launch.grid, *launch.numbers, *map(len, data)]
    head = " ".join([launch.entry, *map(str, numbers)]) + "\n"
    given = head.encode() + b"".join(data)
    done = subprocess.run([str(program)], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(result.shape)


def padded(launch: Launch, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """As `linear.activations`, in torch.  -> [rows, blocks * 32]"""
    strips, rows = launch.strips, len(x)
    if "input_scale" in strips.shapes():
        x = x * stored[f"{launch.prefix}input_scale"].float()
    full = torch.zeros(rows, strips.groups, strips.padded_group)
    full[:, :, : strips.group] = x.view(rows, strips.groups, strips.group)
    behind = strips.blocks * BLOCK - strips.groups * strips.padded_group
    return torch.nn.functional.pad(full.flatten(1), (0, behind))
