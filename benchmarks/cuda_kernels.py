"""How fast the CUDA kernels run on a GPU, against cuBLAS in float16, at one shape of LLaMA-2.

The kernels alone, in a float16 model: launched through the driver in torch's context, activations
in order already, no module of IREE in between.  Every kernel is compared with float64 first.  Then
products with as many weights as exceed the caches are captured in a CUDA graph, and timed in turn
with a graph of torch's products; a sample is the mean over a graph.  Needs torch with CUDA.

    python benchmarks/cuda_kernels.py --shape 4096 4096 --rows 1 16 32 64 --json FILE
"""

import argparse
import ctypes
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from trinity.lowering.kernels.cuda.launch import DIGITS, Launch, Term, launches
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.methods.formats import (
    NM,
    Adapted,
    AdapterFormat,
    FactorFormat,
    Grid,
    Quantized,
    Sparse,
    WeightFormat,
    format_of,
)

GROUP = 128
ROTATED_BYTES = 512 << 20  # some ten times the largest cache
WARM_UP = 3
TOLERANCE = 1e-5  # of the largest output
# Two ascending places of four inputs, two bits each: all that half a byte of metadata may be.
PLACES = (0x4, 0x8, 0xC, 0x9, 0xD, 0xE)


def main() -> None:
    """Check, time, print and write."""
    options = parse()
    driver = Driver(ctypes.CDLL("libcuda.so.1"))
    for rows in (1, 3, 16, 64):
        error = worst_error(driver, rows, torch.device("cuda"))
        if not error < TOLERANCE:
            raise SystemExit(f"{rows} rows: error {error:.1e}, nothing was timed")
    found: list[dict[str, object]] = [{"name": "copy", "bytes_per_s": copy_bandwidth()}]
    for name, weight_format in formats(tuple(options.shape)).items():
        for rows in options.rows:
            found.append(timed(driver, name, Tiles(weight_format), rows, options.repeats))
            print(json.dumps({k: v for k, v in found[-1].items() if "samples" not in k}))
    if options.json:
        record = {"schema": "cuda-kernel-speed/1", "measurements": found}
        record |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        options.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], help="out and in")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64], help="tokens, M")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def formats(shape: tuple[int, int]) -> dict[str, WeightFormat]:
    """The formats that are timed; adapters have a tenth of the smaller side as their rank."""
    (out, d_in), rank = shape, min(shape) // 10 // BLOCK * BLOCK
    grid = Grid(4, True, (out, d_in // GROUP), "float16")
    high = FactorFormat(Grid(4, True, (out, 1), "float16"))
    low = FactorFormat(Grid(4, True, (rank, d_in // GROUP), "float16"))
    adapter = AdapterFormat(rank, None, high, low)
    return {
        "int4": WeightFormat(shape, grid),
        "2:4 int4": WeightFormat(shape, grid, NM(2, 4)),
        "2:4 int4 + adapter": WeightFormat(shape, grid, NM(2, 4), adapter),
    }


class Driver:
    """Loads PTX and launches it in the current context."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """library: the CUDA driver's."""
        self.library = library
        self.functions: dict[str, ctypes.c_void_p] = {}

    def launch(self, launch: Launch, operands: list[Tensor], stream: int) -> None:
        """Start a kernel.  operands: ten inputs and the result, which must outlive it."""
        pointers = [ctypes.c_uint64(operand.data_ptr()) for operand in operands]
        values = [*pointers, *map(ctypes.c_int32, launch.constants)]
        parameters = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        sizes = (*launch.grid, 1, launch.threads, 1, 1, 0)  # grid, block, dynamic shared memory
        function = self.function(launch.entry)
        last = (ctypes.c_void_p(stream), parameters, None)
        self._call("cuLaunchKernel", function, *map(ctypes.c_uint, sizes), *last)

    def function(self, entry: str) -> ctypes.c_void_p:
        """A kernel, loaded once."""
        if entry not in self.functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            text = resources.files("trinity.lowering.kernels.cuda").joinpath(f"{entry}.ptx")
            self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(text.read_bytes()))
            name = ctypes.c_char_p(entry.encode())
            self._call("cuModuleGetFunction", ctypes.byref(function), module, name)
            self.functions[entry] = function
        return self.functions[entry]

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            msg = f"{name}: CUresult {status}"
            raise RuntimeError(msg)


@dataclass(frozen=True, eq=False)
class Product:
    """The launches of one linear with their operands, and its result, [rows, out], float32."""

    calls: tuple[tuple[Launch, list[Tensor]], ...]

    @property
    def result(self) -> Tensor:
        """What the last launch writes."""
        return self.calls[-1][1][-1]

    def run(self, driver: Driver, stream: int) -> None:
        """Compute it again."""
        for launch, operands in self.calls:
            driver.launch(launch, operands, stream)


def product(tiles: Tiles, stored: Mapping[str, Tensor], x: Tensor) -> Product:
    """x W^T of a float16 model.  x: [rows, in], float16"""
    calls: list[tuple[Launch, list[Tensor]]] = []
    for launch in launches(tiles, len(x), "float16"):
        operands = []
        for term in launch.terms:
            operands.append(calls[-1][1][-1] if term.source == "low" else ordered(term, x))
            operands += [stored[name] for name in term.stored]
        shape, dtype = launch.result
        calls.append((launch, [*operands, torch.empty(shape, dtype=dtype, device=x.device)]))
    return Product(tuple(calls))


def ordered(term: Term, x: Tensor) -> Tensor:
    """Activations as B operands take them.  -> [blocks, digits, rows, 4, 4, 2]"""
    tiles, rows = term.tiles, len(x)
    full = torch.zeros(rows, tiles.groups, tiles.span * BLOCK, device=x.device)
    full[:, :, : tiles.group] = x.float().view(rows, tiles.groups, tiles.group)
    parts = [full.half()]
    if term.digits:
        parts = []
        for _ in range(DIGITS):
            top = (full.view(torch.int32) & -65536).view(torch.float32)
            parts.append(top.bfloat16())
            full = full - top
    split = torch.stack(parts).view(len(parts), rows, tiles.blocks, 4, 4, 2)
    return split.permute(2, 0, 1, 4, 3, 5).contiguous()


def worst_error(driver: Driver, rows: int, device: torch.device) -> float:
    """Largest difference from float64, as a part of the largest output: 2:4 with an adapter."""
    out, d_in, rank = 300, 1280, 40
    codes = torch.randint(-8, 8, (out, d_in), dtype=torch.int8)
    values = Quantized(codes, (torch.rand(out, d_in // GROUP) + 0.5).half(), None, 4)
    mask = (torch.rand(out, d_in // 4, 4).argsort(-1) < 2).view(out, d_in)
    base = Sparse(values, mask, NM(2, 4))
    weight = Adapted(base, torch.randn(out, rank).half(), torch.randn(rank, d_in).half())
    tiles = Tiles(format_of(weight))
    stored = {name: tensor.to(device) for name, tensor in tiles.pack(weight).items()}
    x = torch.randn(rows, d_in).half()
    found = product(tiles, stored, x.to(device))
    found.run(driver, 0)  # the default stream waits for torch's, and torch's for it
    expected = x.double() @ weight.dequantize().double().T
    return float((found.result.cpu().double() - expected).abs().max() / expected.abs().max())


def random_storage(tiles: Tiles) -> dict[str, Tensor]:
    """Stored tensors of random numbers that some weight has."""
    found = {}
    for name, (shape, dtype) in tiles.shapes().items():
        if "places" in name:
            halves = torch.tensor(PLACES, dtype=torch.uint8, device="cuda")
            low, high = halves[torch.randint(len(PLACES), (2, *shape), device="cuda")]
            found[name] = low | high << 4
        elif dtype == torch.uint8:
            found[name] = torch.randint(256, shape, dtype=dtype, device="cuda")
        else:
            found[name] = (torch.rand(shape, device="cuda") + 0.5).to(dtype)
    return found


def timed(driver: Driver, name: str, tiles: Tiles, rows: int, repeats: int) -> dict[str, object]:
    """Samples of our product and of torch's, in turn, and what they say."""
    out, d_in = tiles.format.shape
    size = sum(prod(shape) * dtype.itemsize for shape, dtype in tiles.shapes().values())
    x = torch.randn(rows, d_in, device="cuda").half()
    ours = [product(tiles, random_storage(tiles), x) for _ in range(-(-ROTATED_BYTES // size))]
    copies = -(-ROTATED_BYTES // (2 * out * d_in))
    dense = [torch.randn(out, d_in, device="cuda").half() for _ in range(copies)]
    graphs = {
        "ours": captured([lambda s, one=one: one.run(driver, s) for one in ours]),
        "cublas": captured([lambda _, weight=weight: x @ weight.T for weight in dense]),
    }
    counts = {"ours": len(ours), "cublas": len(dense)}
    samples: dict[str, list[float]] = {key: [] for key in graphs}
    for _ in range(WARM_UP + repeats):
        for key, graph in graphs.items():
            samples[key].append(seconds(graph.replay) / counts[key])
    medians = {key: median(found[WARM_UP:]) for key, found in samples.items()}
    return {
        "name": name,
        "shape": [out, d_in],
        "rows": rows,
        "read_bytes": size,
        "bytes_per_s": size / medians["ours"],
        "speedup": medians["cublas"] / medians["ours"],
        **{f"{key}_s": value for key, value in medians.items()},
        **{f"{key}_samples_s": found[WARM_UP:] for key, found in samples.items()},
    }


def captured(calls: list[Callable[[int], object]]) -> torch.cuda.CUDAGraph:
    """A graph of calls that are given the stream to work on, run once before."""
    for call in calls:
        call(torch.cuda.current_stream().cuda_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call(torch.cuda.current_stream().cuda_stream)
    return graph


def seconds(work: Callable[[], object]) -> float:
    """Time on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 1 GiB, the best of ten."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    return 2 * source.nbytes / best


if __name__ == "__main__":
    main()
