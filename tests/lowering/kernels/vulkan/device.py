"""Linears on a Vulkan device: many in one module, in this process or, with other settings of the
driver's, in one of its own.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.linear import strip_kernels
from trinity.lowering.module import devices
from trinity.lowering.module.compile import compile_text, target_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, InputFormat, WeightFormat, format_of

VULKAN = targets.get("vulkan")


@dataclass(frozen=True)
class Product:
    """A linear and some inputs.  x: [rows, in]; inputs: what they are rounded to"""

    weight: CompressedWeight
    x: Tensor
    inputs: InputFormat | None = None

    @property
    def expected(self) -> Tensor:
        """In float64."""
        x = self.inputs.rounded(self.x) if self.inputs else self.x
        return x.double() @ self.weight.dequantize().double().T

    @property
    def format(self) -> WeightFormat:
        """Of the weight and what it is multiplied with."""
        return replace(format_of(self.weight), inputs=self.inputs)

    @property
    def operands(self) -> list[Tensor]:
        """What its function takes."""
        return [self.x, *Strips(self.format).pack(self.weight).values()]


def require_device() -> None:
    if not devices.available(VULKAN):
        pytest.skip("no Vulkan device (Debian's mesa-vulkan-drivers has one that runs on the CPU)")


def some(products: Mapping[str, Product], *names: str) -> dict[str, Product]:
    """Some of them: a pipeline takes Mesa's compiler a quarter of a second."""
    return {name: products[name] for name in names}


def text_of(products: Mapping[str, Product]) -> str:
    """Stage target of a module with a public function for each."""
    kernels = [
        strip_kernels(name, Strips(product.format), len(product.x))
        for name, product in products.items()
    ]
    text = with_kernels("module {\n}\n", kernels)
    return target_text(text.replace("func.func private", "func.func"), VULKAN)


def compiled(text: str) -> bytes:
    return compile_text(text, VULKAN)


def loaded(text: str) -> Loaded:
    """A module of kernels, on the device."""
    return Loaded(compiled(target_text(text, VULKAN)), VULKAN)


def multiplied(module: Loaded, name: str, operands: Sequence[Tensor]) -> Tensor:
    """-> [rows, out]"""
    return module.fetch(module.call(name, [module.put(tensor) for tensor in operands]))


def elsewhere(
    vmfb: bytes, products: Mapping[str, Product], folder: Path, settings: Mapping[str, str]
) -> tuple[dict[str, Tensor] | None, str]:
    """The products in a process with other environment variables, None if it failed, and what it
    printed.
    """
    given = {name: product.operands for name, product in products.items()}
    torch.save({"vmfb": vmfb, "given": given}, folder / "given.pt")
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        env={**os.environ, **settings},
        cwd=Path(__file__).parents[4],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    made = torch.load(folder / "made.pt", weights_only=True) if done.returncode == 0 else None
    return made, done.stdout


def main(folder: Path) -> None:
    """The other side of `elsewhere`."""
    stored = torch.load(folder / "given.pt", weights_only=True)
    module = Loaded(stored["vmfb"], VULKAN)
    made = {name: multiplied(module, name, of) for name, of in stored["given"].items()}
    torch.save(made, folder / "made.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
