"""Modules for Arm on processors that QEMU emulates: what they compute, not how fast."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.lowering.kernels import arm_machine
from trinity.lowering import names
from trinity.lowering.kernels.cpu.instructions import Flavour
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets

# A kind of processor whose flavour it is, in the compiler's words, and one that runs it, in QEMU's.
CPUS: dict[Flavour, tuple[str, str]] = {
    "neon-i8mm": ("neoverse-v1", "max"),
    "neon-dot": ("neoverse-n1", "neoverse-n1"),
}
# As the runtime calls what tensors hold; bytes are signless in modules.
ELEMENTS = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.uint8: "i8",
}


@cache
def missing() -> str | None:
    """What this machine lacks to run a module for Arm, or None."""
    if qemu() is None:
        return "no qemu-aarch64 (Debian's and Ubuntu's qemu-user)"
    if not arm_machine.programs(version("iree-base-runtime")).exists():
        return f"no IREE for aarch64 in {arm_machine.FOLDER} (`tox -e arm` lays it there)"
    return None


def require() -> None:
    """Skip the test where modules for Arm cannot run."""
    if lacking := missing():
        pytest.skip(lacking)


def qemu() -> str | None:
    """The program."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def ran(processor: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program of IREE's on a processor, in QEMU's words."""
    require()
    path = arm_machine.programs(version("iree-base-runtime")) / program
    command = [str(qemu()), "-cpu", processor, "-L", str(arm_machine.FOLDER), str(path)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, encoding="utf-8", check=False
    )


class Emulated:
    """A module for Arm on an emulated processor, called as `Loaded` is; each call is a process."""

    def __init__(
        self, code: bytes, processor: str, driver: str, parameters: Path | None = None
    ) -> None:
        """processor: in QEMU's words   driver: of IREE's   parameters: a file"""
        self.code, self.processor = code, processor
        self.flags = [f"--device={driver}"]
        if parameters:
            self.flags.append(f"--parameters={names.SCOPE}={parameters}")

    def put(self, tensor: Tensor) -> Tensor:
        """An argument."""
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        """A result."""
        return tensor

    def call(self, name: str, arguments: Sequence[Tensor]) -> Tensor:
        """Call a function of one result, of float32."""
        return self.results(name, arguments, 1)[0]

    def results(self, name: str, arguments: Sequence[Tensor], count: int) -> list[Tensor]:
        """Call a function of so many results, of float32."""
        with tempfile.TemporaryDirectory() as made:
            files = [Path(made) / f"y{i}.npy" for i in range(count)]
            done = self.run(name, arguments, files)
            assert done.returncode == 0, done.stderr
            return [torch.from_numpy(np.load(file)) for file in files]

    def run(
        self, name: str, arguments: Sequence[Tensor], results: Sequence[Path]
    ) -> subprocess.CompletedProcess[str]:
        """Call a function in a process.  results: files for them"""
        with tempfile.TemporaryDirectory() as made:
            module, flags = Path(made) / "module.vmfb", [f"--output=@{file}" for file in results]
            module.write_bytes(self.code)
            for i, tensor in enumerate(arguments):
                file = Path(made) / f"x{i}.bin"
                file.write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
                sizes = "x".join(map(str, (*tensor.shape, ELEMENTS[tensor.dtype])))
                flags.append(f"--input={sizes}=@{file}")
            flags += [f"--module={module}", f"--function={name}", *self.flags]
            return ran(self.processor, "iree-run-module", *flags)


def loaded(text: str, flavour: Flavour, driver: str = "local-sync") -> Emulated:
    """A module at stage target, compiled for a flavour's kind of processor."""
    kind, processor = CPUS[flavour]
    return Emulated(compile_text(text, targets.get("llvm-cpu", kind)), processor, driver)


def with_caches(
    module: Loaded | Emulated, name: str, arguments: Sequence[Tensor], first: int
) -> list[Tensor]:
    """A function's result, and the two caches that it writes in place.

    first: of the caches among the arguments
    """
    if isinstance(module, Emulated):  # another process: it hands over what it wrote
        return module.results(name, arguments, 3)
    buffers = [module.put(tensor) for tensor in arguments]
    found = module.call(name, buffers)
    return [module.fetch(buffer) for buffer in (found, *buffers[first : first + 2])]
