"""What an AMD GPU would execute for our Vulkan kernels: counted in its machine code, not measured.

Mesa's driver compiles them for GPUs that are not there (radv.py).  Of every format and number of
tokens: registers, spilled ones, waves that fit, and in the loop over blocks of inputs, for each KB
of weights, vector instructions of a wave of 64, how many the products themselves take (multiply and
add, or dot products of four bytes), and how many KB are read into registers, most of them inputs.
Needs Debian's mesa-vulkan-drivers.

    python -m benchmarks.gpu.amd_limits --json results/notes/amd-limits.json
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.radv import MARK
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.padded_panels import BLOCK, PANEL
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.device import OBJECTS
from trinity.lowering.kernels.vulkan.dispatches import shader_of
from trinity.lowering.kernels.vulkan.launch import launches
from trinity.methods.formats import NM, Floats, Grid, InputFormat, WeightFormat

DRIVER = "/usr/share/vulkan/icd.d/radeon_icd.x86_64.json"
FAMILIES = {"vega20": "Radeon VII, MI50", "navi21": "RX 6800, 6900", "gfx1100": "RX 7900"}
WAVE = 64  # lanes
TOKENS = (1, 4, 8)
SHAPE = (4096, 4096)
WORDS = {"dword": 4, "dwordx2": 8, "dwordx4": 16, "b32": 4, "b64": 8, "b128": 16}
FIELDS = {
    "registers": "VGPRs",
    "spilled": "Spilled VGPRs",
    "waves": "Subgroups per SIMD",
    "shared_bytes": "LDS size",
    "instructions": "Instructions",
}


def main() -> None:
    """Count, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [
        counted(family, label, weight_format, tokens)
        for family in FAMILIES
        for label, weight_format in formats().items()
        for tokens in TOKENS
    ]
    print(markdown(found), end="")
    if options.json:
        write_json(options.json, {"schema": "amd-limits/1", "counts": found})


def formats() -> dict[str, WeightFormat]:
    """By a short name."""
    grid = Grid(4, True, (SHAPE[0], SHAPE[1] // 128), "float16")
    return {
        "int4": WeightFormat(SHAPE, grid),
        "2:4 int4": WeightFormat(SHAPE, grid, NM(2, 4)),
        "float16": WeightFormat(SHAPE, Floats("float16")),
        "int4, inputs int8": WeightFormat(SHAPE, grid, inputs=InputFormat("int8", 128)),
    }


def counted(family: str, label: str, weight_format: WeightFormat, tokens: int) -> dict[str, Any]:
    """A row of the table."""
    strips = Strips(weight_format)
    (launch,) = launches(strips, tokens)[1]
    constants = (launch.lanes, launch.most_slices, launch.tile, 0, *launch.constants)
    shader = shader_of(launch).file
    said = compiled(family, shader, constants, 4 * len(launch.numbers))
    row = statistics(said)
    body, outputs = loop(said), PANEL // launch.lanes
    own = len(re.findall(r"^\s+v_(?:fmac|fma|mac|mad)(?:_mix)?_f32", body, re.M))
    # The compiler may take the first product of a sum without an addition.
    expected = BLOCK * outputs * tokens
    if shader == "dots":  # four products an instruction
        expected, own = expected // 4, len(re.findall(r"^\s+v_dot4", body, re.M))
    if not 0.8 * expected <= own + len(re.findall(r"^\s+v_mul_f32", body, re.M)):
        raise SystemExit(
            f"{family}, {label}: {own} products of {expected} are in the largest block"
        )
    kb = WAVE * outputs * strips.unit_words * 16 / strips.unit_blocks / 1024
    loaded = sum(WORDS[of] for of in re.findall(r"^\s+buffer_load_(\w+) ", body, re.M))
    vector = len(re.findall(r"^\s+v_", body, re.M))
    return row | {
        "family": family,
        "format": label,
        "tokens": tokens,
        "vector_instructions_a_kb": round(vector / kb, 1),
        "products_a_kb": round(expected / kb, 1),
        "read_kb_a_kb": round(loaded * WAVE / 1024 / kb, 2),
    }


def statistics(said: str) -> dict[str, int]:
    """Of what the driver prints."""
    return {
        key: int(re.findall(rf"^{name}: (\d+)$", said, re.M)[-1]) for key, name in FIELDS.items()
    }


def compiled(family: str, shader: str, constants: tuple[int, ...], push_bytes: int) -> str:
    """What the driver prints of a shader: statistics and machine code."""
    words = ",".join(str(number) for number in constants)
    command = [sys.executable, "-m", "benchmarks.gpu.radv", str(OBJECTS / f"{shader}.spv")]
    done = subprocess.run(
        [*command, "--constants", words, "--push", str(push_bytes)],
        env={
            **os.environ,
            "RADV_FORCE_FAMILY": family,
            "RADV_DEBUG": "shaders,shaderstats,nocache",
            "VK_ICD_FILENAMES": DRIVER,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=True,
    )
    return done.stdout.partition(MARK)[2]


def loop(said: str) -> str:
    """The basic block of most instructions: the loop over blocks, all of whose fours are in it."""
    blocks = re.split(r"^BB\d+:", said.rpartition("disasm:")[2], flags=re.M)
    return max(blocks, key=lambda block: len(re.findall(r"^\s+(?:v|s|buffer)_", block, re.M)))


def markdown(found: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "| GPU | format | tokens | registers | spilled | waves | vector instructions a KB "
        "| for products | KB read a KB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        cells = [f"{FAMILIES[row['family']]} ({row['family']})", row["format"], row["tokens"]]
        cells += [row[key] for key in ("registers", "spilled", "waves")]
        cells += [f"{row['vector_instructions_a_kb']:.0f}", f"{row['products_a_kb']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['read_kb_a_kb']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
