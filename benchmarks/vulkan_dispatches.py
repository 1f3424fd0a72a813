"""Dispatches of a decoded token on `vulkan`, and the bytes of the tensors that they are given.

    python benchmarks/vulkan_dispatches.py --width 512 --places 2048

A random Llama of two blocks in int4: with our kernels for whole blocks, with those for products
alone, and with none, which is the compiler's code.  Nothing is run: what the compiler is about to
dispatch is counted.  A tensor counts whole for each dispatch that it is given to, twice if it is
read and written; a kernel may read less, as attention does of a cache that is not full.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from vulkan_kernels import COMPILED, OURS, decoder

from trinity.lowering.kernels.target_kernels import FusedKernel
from trinity.lowering.kernels.vulkan.device import OBJECTS
from trinity.lowering.kernels.vulkan.kernels import VulkanKernels
from trinity.lowering.lower import lower
from trinity.lowering.module.compile import tool
from trinity.lowering.targets.targets import COMMON_FLAGS


class ProductsAlone(VulkanKernels):
    """Our kernels without those of whole blocks."""

    @property
    def fused(self) -> Mapping[str, FusedKernel[Any]]:  # as in `TargetKernels`
        """None."""
        return {}


TARGETS = {
    "blocks": OURS,
    "products": replace(OURS, kernels=ProductsAlone),
    "compiler's": COMPILED,
}


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=512, help="of the model's hidden states")
    parser.add_argument("--places", type=int, default=2048, help="of the caches")
    asked = parser.parse_args()
    print("| kernels | dispatches | MB given |\n|---|---:|---:|")
    for name, target in TARGETS.items():
        model, plan = decoder(asked.width, "int4", target, asked.places)
        dispatches, given = counted(scheduled(lower(model, plan).target))
        print(f"| {name} | {dispatches} | {given / 1e6:.1f} |", flush=True)


def scheduled(text: str) -> str:
    """What the compiler makes of a module before it makes code: calls with the bytes they get."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "module.mlir")
        source.write_text(text, encoding="utf-8")
        flags = [*COMMON_FLAGS, *OURS.flags, "--compile-to=stream"]
        flags.append(f"--iree-hal-executable-object-search-path={OBJECTS}")
        command = [tool("iree-compile"), str(source), *flags, "-o", "-"]
        return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout


def counted(text: str) -> tuple[int, int]:
    """Dispatches and bytes of all functions."""
    constants = dict(re.findall(r"(%c[\w-]+) = arith.constant (\d+) : index", text))
    calls = re.findall(r"stream\.cmd\.dispatch [^\n]*\n(.*?)\n\s*\}", text, re.DOTALL)
    given = sum(
        int(constants[size]) * (2 if use == "rw" else 1)
        for call in calls
        for use, size in re.findall(r"(ro|wo|rw) %\S+?\[\S+ for (%[\w-]+)\]", call)
    )
    return len(calls), given


if __name__ == "__main__":
    main()
