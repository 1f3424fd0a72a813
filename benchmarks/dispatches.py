"""Dispatches of a decoded token on a GPU's target, and the bytes of what they are given.

    python benchmarks/dispatches.py --target vulkan --width 512 --places 2048

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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

from vulkan_kernels import decoder, formats

from trinity.lowering.lower import lower
from trinity.lowering.module.compile import tool
from trinity.lowering.targets import targets
from trinity.lowering.targets.targets import COMMON_FLAGS, Target


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="vulkan", help="cuda, a rocm one, or vulkan")
    parser.add_argument("--format", choices=list(formats((1, 1))), default="int4")
    parser.add_argument("--width", type=int, default=512, help="of the model's hidden states")
    parser.add_argument("--places", type=int, default=2048, help="of the caches")
    asked = parser.parse_args()
    print("| kernels | dispatches | MB given |\n|---|---:|---:|")
    for name, target, text in modules(asked):
        dispatches, given = counted(scheduled(text, target))
        print(f"| {name} | {dispatches} | {given / 1e6:.1f} |", flush=True)


def modules(asked: argparse.Namespace) -> Iterator[tuple[str, Target, str]]:
    """A name, a target and a module's text with each kind of kernels."""
    ours = targets.get(asked.target)
    assert ours.kernels
    alone = mock.patch.object(type(ours.kernels()), "fused", {})
    cases = (
        ("blocks", ours, nullcontext()),
        ("products", ours, alone),
        ("compiler's", replace(ours, kernels=None), nullcontext()),
    )
    for name, target, patched in cases:
        with patched:
            model, plan = decoder(asked.width, asked.format, target, asked.places)
            yield name, target, lower(model, plan).target


def scheduled(text: str, target: Target) -> str:
    """What the compiler makes of a module before it makes code: calls with the bytes they get."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "module.mlir")
        source.write_text(text, encoding="utf-8")
        flags = [*COMMON_FLAGS, *target.flags, "--compile-to=stream"]
        if target.kernels:
            objects = target.kernels().objects
            flags.append(f"--iree-hal-executable-object-search-path={objects}")
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
