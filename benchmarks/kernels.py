"""How fast packed products run in the kernels, against torch, at one shape of LLaMA-2-7B.

Every product is timed in turn with dense float32 in torch, twice, in one process; weights are
rotated so that no cache holds them.  Adapters have a tenth of the smaller side as their rank, in 4
bits.  Beside them torch's own bfloat16 product and its own int4 kernel (bfloat16 activations).

    python benchmarks/kernels.py --shape 4096 4096 --rows 1 16 128 --json FILE

`--cpu x86-64-v3` times the code of another kind of processor on one that has more.  torch is then
told to use no more either, by what it reads from the environment when it starts:

    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
"""

import argparse
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from trinity.harness.bench.layers import Product, bench_layers, iree_product
from trinity.harness.latency import ceilings
from trinity.harness.records.environment import environment
from trinity.harness.records.measurement import Measurement
from trinity.harness.store.stages import write_json
from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.kernels.cpu.flavour import instructions_of
from trinity.methods.formats import (
    NM,
    AdapterFormat,
    Codebook,
    CompressedWeight,
    FactorFormat,
    Floats,
    Grid,
    InputFormat,
    NestedGrid,
    OutlierFormat,
    Quantized,
    RowCodebook,
    Tiles,
    Unstructured,
    VectorCodebook,
    WeightFormat,
)

GROUP = 128
OUTLIERS = 200  # one of so many inputs is one


def main() -> None:
    """Time, print a table, and write the record."""
    options = parse()
    cases = formats(tuple(options.shape))
    limits = ceilings.measured()
    found: list[Measurement] = list(limits.measurements)
    for name, weight_format in cases.items():
        if options.products and name not in options.products:
            continue
        for rows in options.rows:
            makers = [iree_product("llvm-cpu", options.cpu)]
            # Many rows of bfloat16 take torch seconds where the processor has no instructions.
            fit = rows == 1 or ceilings.instructions(torch.bfloat16) != ceilings.NO_INSTRUCTIONS
            if name == "int4" and options.cpu == cpus.HOST and fit:
                makers += [torch_bfloat16, torch_int4]
            found += bench_layers([weight_format], [rows], options.repeats, makers, limits)
    for m in found:
        speed = "" if m.metric != "speedup" else f"{m.value:.2f} {m.interval}"
        print(f"{m.name:72} {m.engine:16} {m.metric:8} {m.value:.3e} {speed}")
    if options.json:
        write_json(
            options.json,
            {
                "schema": "kernel-speed/1",
                "command": f"python benchmarks/kernels.py {' '.join(map(str, words(options)))}",
                "cpu": options.cpu,
                "flavour": instructions_of(cpus.get(options.cpu)).flavour,
                "torch_instructions": torch.backends.cpu.get_cpu_capability(),
                "environment": environment(),
                "measurements": [m.model_dump(mode="json") for m in found],
            },
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], help="out and in")
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="rows of the input, M")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu", default=cpus.HOST, help="whose instructions are used")
    parser.add_argument("--products", nargs="+", help="short names; all if not given")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def words(options: argparse.Namespace) -> list[object]:
    """The command line again, without the file."""
    found = ["--shape", *options.shape, "--rows", *options.rows, "--repeats", options.repeats]
    if options.cpu != cpus.HOST:
        found += ["--cpu", options.cpu]
    if options.products:
        found += ["--products", *(f"'{name}'" for name in options.products)]
    return found


def formats(shape: tuple[int, int]) -> dict[str, WeightFormat]:
    """The formats that are timed, by a short name."""
    (out, d_in), rank = shape, min(shape) // 10 // 16 * 16
    grid = Grid(4, True, (out, d_in // GROUP), "float16")
    high = FactorFormat(Grid(4, True, (out, 1), "float16"))
    low = FactorFormat(Grid(4, True, (rank, d_in // GROUP), "float16"))
    adapter, inputs = AdapterFormat(rank, None, high, low), InputFormat("int8", GROUP)
    some = OutlierFormat(max(1, d_in // OUTLIERS), "float16")
    return {
        "int4": WeightFormat(shape, grid),
        "2:4 int4": WeightFormat(shape, grid, NM(2, 4)),
        "int4 + adapter": WeightFormat(shape, grid, adapter=adapter),
        "2:4 int4 + adapter": WeightFormat(shape, grid, NM(2, 4), adapter),
        "int4, int8 inputs": WeightFormat(shape, grid, inputs=inputs),
        "2:4 int4, int8 inputs": WeightFormat(shape, grid, NM(2, 4), inputs=inputs),
        "50% int4": WeightFormat(shape, grid, Unstructured(0.5)),
        "nf4": WeightFormat(shape, Codebook("nf4", (out, d_in // 64), "float16")),
        "2:4 nf4": WeightFormat(shape, Codebook("nf4", (out, d_in // 64), "float16"), NM(2, 4)),
        "mxfp4": WeightFormat(shape, Codebook("e2m1", (out, d_in // 32), "float8_e8m0fnu")),
        "nvfp4": WeightFormat(shape, Codebook("e2m1", (out, d_in // 16), "float8_e4m3fn", True)),
        "2:4 mxfp4": WeightFormat(
            shape, Codebook("e2m1", (out, d_in // 32), "float8_e8m0fnu"), NM(2, 4)
        ),
        "4 bits, levels by row": WeightFormat(shape, RowCodebook(4, out, "float16")),
        "3 bits, levels by row": WeightFormat(shape, RowCodebook(3, out, "float16")),
        "2x8-bit vectors": WeightFormat(shape, VectorCodebook(2, 8, 8, "float16", "float16")),
        "int4, outliers": WeightFormat(shape, grid, outliers=some),
        "3 bits, levels by row, outliers": WeightFormat(
            shape, RowCodebook(3, out, "float16"), outliers=some
        ),
        "3 bits, scales of 3": WeightFormat(shape, NestedGrid(3, d_in // 16, 3, 16, "float16")),
        "3 bits, scales of 3, outliers": WeightFormat(
            shape, NestedGrid(3, d_in // 16, 3, 16, "float16"), outliers=some
        ),
        "fp8": WeightFormat(shape, Codebook("e4m3", (out, 1), "float32")),
        "float16": WeightFormat(shape, Floats("float16")),
        "2:4 float16": WeightFormat(shape, Floats("float16"), NM(2, 4)),
        "50% float16": WeightFormat(shape, Floats("float16"), Unstructured(0.5)),
        **{
            f"tiles {share}% float16": WeightFormat(shape, Floats("float16"), Tiles(share / 100))
            for share in (25, 50, 75)
        },
    }


def torch_bfloat16(_: WeightFormat, weight: CompressedWeight, x: Tensor) -> Product:
    """Dense bfloat16 in torch, on rotated copies."""
    dense, narrow = weight.dequantize().bfloat16(), x.bfloat16()
    copies = cycle([dense.clone() for _ in range(8)])
    return Product("torch-bfloat16", "reference", dense.nbytes, 8, lambda: narrow @ next(copies).T)


def torch_int4(_: WeightFormat, weight: CompressedWeight, x: Tensor) -> Product:
    """torch's own int4 kernel for CPUs, with its bfloat16 activations and scales."""
    assert isinstance(weight, Quantized)
    codes = (weight.codes.to(torch.int32) + 8).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 8)
    scale = weight.scale.T.bfloat16().contiguous()
    both = torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()
    copies, narrow = cycle([packed.clone() for _ in range(32)]), x.bfloat16()
    size = packed.nbytes + both.nbytes
    return Product(
        "torch-int4",
        "reference",
        size,
        32,
        lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(narrow, next(copies), GROUP, both),
    )


if __name__ == "__main__":
    main()
