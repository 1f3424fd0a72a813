"""What an AMD GPU would execute for many tokens in the tiles of our Vulkan kernels: counted in its
machine code, as amd_limits.py does, not measured.

Of every format and size of tile: registers, waves that fit, and for a block of 32 inputs and all of
a workgroup, 64 outputs of the tile's tokens: vector instructions of a lane for each of its multiply
and adds, and what is read from buffers and moved to and from shared memory.  All is counted as if
every block had scales of its own.

    python -m benchmarks.gpu.amd_tiles --json results/notes/amd-tiles.json
"""

import argparse
import re
from pathlib import Path
from typing import Any

from benchmarks.gpu.amd_limits import FAMILIES, WORDS, compiled, formats, statistics
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.padded_panels import BLOCK, PANEL
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan import tiles
from trinity.lowering.kernels.vulkan.launch import launches
from trinity.methods.formats import WeightFormat

FOURS = BLOCK // 4
LANES = tiles.LANES * tiles.ROWS
PRODUCT = r"v_(?:fmac|fma|mac|mad)(?:_mix)?_f32"


def main() -> None:
    """Count, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [
        counted(family, label, weight_format, size)
        for family in FAMILIES
        for label, weight_format in formats().items()
        for size in tiles.sizes(Strips(weight_format))
    ]
    print(markdown(counts), end="")
    if options.json:
        write_json(options.json, {"schema": "amd-tiles/1", "counts": counts})


def counted(family: str, label: str, weight_format: WeightFormat, size: int) -> dict[str, Any]:
    """A row of the table.  size: tokens of a tile"""
    (launch,) = launches(Strips(weight_format), size)[1]
    constants = (tiles.LANES, tiles.ROWS, size, 0, *launch.constants)
    said = compiled(family, "tile", constants, 4 * len(launch.numbers))
    products = PANEL * tiles.PANELS * size // LANES * BLOCK  # of a lane, of a block of inputs
    body = loop(said, products)
    return statistics(said) | {
        "family": family,
        "format": label,
        "tokens": size,
        "vector_instructions_a_product": round(len(found("v_", body)) / products, 2),
        "read_kb": kb(found(r"buffer_load_(\w+) ", body)),
        "shared_written_kb": kb(found(r"ds_(?:store|write)_(\w+) ", body)),
        "shared_read_kb": kb(found(r"ds_(?:load|read)_(\w+) ", body)),
    }


def loop(said: str, products: int) -> str:
    """What a lane executes for a block of inputs: the basic blocks from the first barrier to the
    last that multiplies.  The loop over the inputs' fours counts for each of them, if the compiler
    left it one.
    """
    blocks = re.split(r"^BB\d+:", said.rpartition("disasm:")[2], flags=re.M)
    first = next(i for i, block in enumerate(blocks) if "s_barrier" in block)
    last = max(i for i, block in enumerate(blocks) if found(PRODUCT, block))
    body = "".join(
        block * (FOURS if len(found(PRODUCT, block)) == products // FOURS else 1)
        for block in blocks[first : last + 1]
    )
    made = len(found(f"{PRODUCT}|v_mul_f32", body))
    if not products <= made <= 1.2 * products:  # and what multiplies by scales
        raise SystemExit(f"{made} products of {products} are in the loop")
    return body


def found(pattern: str, body: str) -> list[str]:
    """The instructions that begin with a pattern, or what its group holds."""
    return re.findall(rf"^\s+(?:{pattern})", body, re.M)


def kb(loads: list[str]) -> float:
    """Of a workgroup."""
    return round(sum(WORDS[of] for of in loads) * LANES / 1024, 1)


def markdown(counts: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "| GPU | format | tokens | registers | spilled | waves | vector instructions a product "
        "| KB read | KB to shared memory | KB from it |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in counts:
        cells = [f"{FAMILIES[row['family']]} ({row['family']})", row["format"], row["tokens"]]
        cells += [row[key] for key in ("registers", "spilled", "waves")]
        cells += [f"{row['vector_instructions_a_product']:.2f}"]
        cells += [f"{row[key]:.0f}" for key in ("read_kb", "shared_written_kb", "shared_read_kb")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
