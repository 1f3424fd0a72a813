"""A decoder block at one token, by how its keys and values are kept: floats, 8 bits, 4 bits.

SmolLM2-135M's block in int4 on `llvm-cpu`, on one thread, called with thirty caches in turn, as a
model with thirty blocks would: more than a processor's caches hold.  Formats are timed in turn, the
floats twice; what the second says against the first is noise.  Weights are the same numbers all the
time, so they stay in the processor's caches and a whole step has more to read.

    python benchmarks/caches.py --positions 128 1024 2047 --rounds 30 --json FILE
"""

import argparse
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from trinity.harness.latency import machine
from trinity.harness.records.environment import environment
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.block import block_kernels
from trinity.lowering.kernels.cpu.flavour import host_instructions
from trinity.lowering.kernels.decoder_parts import LINEARS, NORMS, BlockFormat, Heads
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.module.random_weights import random_weight
from trinity.lowering.targets import targets
from trinity.methods.formats import CacheFormat, Grid, WeightFormat

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, LONGEST, BLOCKS = 576, 1536, 9, 3, 64, 2048, 30
SHAPES = {
    "q_proj": (HEADS * WIDTH, HIDDEN),
    "k_proj": (KV_HEADS * WIDTH, HIDDEN),
    "v_proj": (KV_HEADS * WIDTH, HIDDEN),
    "o_proj": (HIDDEN, HEADS * WIDTH),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}
CASES = {"floats": None, "8 bits": 8, "4 bits": 4, "floats again": None}


class Timed:
    """A block with caches of one kind, which are all zeros: a time does not depend on them."""

    def __init__(self, bits: int | None) -> None:
        """bits: of a code; None for floats"""
        target = replace(targets.get("llvm-cpu"), driver="local-sync")
        instructions = host_instructions()
        linears = {}
        for name in LINEARS:
            out, d_in = SHAPES[name.split(".")[1]]
            grid = Grid(4, symmetric=True, scale_shape=(out, d_in // 64), scale_dtype="float16")
            linears[name] = WeightFormat((out, d_in), grid)
        kept = CacheFormat(bits) if bits else None
        heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5, kept)
        block = BlockFormat(HIDDEN, heads, 1e-5, linears)
        text = with_kernels("module {\n}\n", [block_kernels(block, instructions)])
        text = text.replace("func.func private", "func.func")
        self.module, self.name = Loaded(compile_text(text, target), target), block.function
        stored = {name: torch.ones(HIDDEN) for name in NORMS}
        for name, weight_format in linears.items():
            packed = instructions.panels(weight_format).pack(random_weight(weight_format))
            stored |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        put = self.module.put
        self.stored = [put(stored[name]) for name in block.parameters(instructions.panels)]
        self.caches = [[put(torch.zeros(heads.cache)) for _ in range(2)] for _ in range(BLOCKS)]
        self.bytes = 2 * BLOCKS * 4 * heads.cache[1] * heads.cache[2] * heads.cache[3]
        cos = torch.ones(1, 1, WIDTH)
        self.given = [put(torch.randn(1, 1, HIDDEN)), put(cos), put(torch.zeros_like(cos))]

    def seconds(self, position: int) -> float:
        """Of one block, the mean of all of them."""
        place, caches = self.module.put(torch.tensor([position])), cycle(self.caches)
        start = time.perf_counter()
        for _ in range(BLOCKS):
            self.module.call(self.name, [*self.given, place, *next(caches), *self.stored])
        return (time.perf_counter() - start) / BLOCKS


def main() -> None:
    """Time, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[128, 1024, LONGEST - 1])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = {name: Timed(bits) for name, bits in CASES.items()}
    found = []
    for position in options.positions:
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for timed in cases.values():
            timed.seconds(position)
        for _ in range(options.rounds):
            for name, timed in cases.items():
                samples[name].append(timed.seconds(position))
        for name, own in samples.items():
            pairs = zip(samples["floats"], own, strict=True)
            ratio = median(floats / seconds for floats, seconds in pairs)
            size = cases[name].bytes
            print(
                f"position {position:5} {name:13} median {1e3 * median(own):7.3f} ms  least "
                f"{1e3 * min(own):7.3f} ms  floats over it {ratio:5.2f}  {size / 1e6:6.1f} MB"
            )
            found.append({"position": position, "cache": name, "bytes": size, "seconds": own})
    if options.json:
        about = {"environment": environment(), "machine": machine.describe()}
        write_json(options.json, {"schema": "cache-speed/1", **about, "measurements": found})


if __name__ == "__main__":
    main()
