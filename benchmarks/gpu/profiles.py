"""What a bundle holds: which products and which models, for a GPU or for a test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.gpu.small_model import Size
from trinity.harness.bench.layers import SHAPES, resized
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.targets import coverage
from trinity.methods.formats import (
    NM,
    AdapterFormat,
    FactorFormat,
    Floats,
    Grid,
    WeightFormat,
)

GROUP = 128


@dataclass(frozen=True)
class Profile:
    """Products and models of a bundle.

    check_formats, check_rows: what is compared with float64   layers: what is timed, by format
    layer_rows, alone_rows: tokens of timed products in modules, and of CUDA kernels alone
    chain: products of one call   models: kinds of small models   size: of these
    """

    check_formats: Callable[[], Iterator[WeightFormat]]
    check_rows: tuple[int, ...]
    layers: Callable[[], Iterator[WeightFormat]]
    layer_rows: tuple[int, ...]
    alone_rows: tuple[int, ...]
    chain: int
    models: tuple[str, ...]
    size: Size


def every_format() -> Iterator[WeightFormat]:
    """One of every kind, at a shape of whole panels and, where groups allow it, one that is not."""
    for weight_format in coverage.formats():
        yield weight_format
        yield resized(weight_format, (1000, 2560))


def llama_layers() -> Iterator[WeightFormat]:
    """The shapes of LLaMA-2-7B, and the one at which other kernels were published."""
    for shape in (*SHAPES["llama-2-7b"], (8192, 8192)):
        yield from timed_formats(shape)


def timed_formats(shape: tuple[int, int]) -> Iterator[WeightFormat]:
    """The formats that are timed; the adapter has a tenth of the smaller side as its rank."""
    (out, d_in), rank = shape, min(shape) // 10 // BLOCK * BLOCK
    grid = Grid(4, True, (out, d_in // GROUP), "float16")
    high = FactorFormat(Grid(4, True, (out, 1), "float16"))
    low = FactorFormat(Grid(4, True, (rank, d_in // GROUP), "float16"))
    int4 = WeightFormat(shape, grid)
    two_four = replace(int4, pattern=NM(2, 4))
    yield from (int4, two_four)
    yield replace(two_four, adapter=AdapterFormat(rank, None, high, low))
    yield WeightFormat(shape, Floats("float16"))


def tiny_formats() -> Iterator[WeightFormat]:
    """Two formats."""
    int4 = WeightFormat((64, 128), Grid(4, True, (64, 1), "float16"))
    yield from (int4, replace(int4, pattern=NM(2, 4)))


PROFILES = {
    "full": Profile(
        check_formats=every_format,
        check_rows=(1, 3, 8, 17, 64),
        layers=llama_layers,
        layer_rows=(1, 16),
        alone_rows=(1, 16, 32, 64),
        chain=32,
        models=("int4", "2:4 int4 + adapter"),
        size=Size(width=256, blocks=4, tokens=48, chunk=16),
    ),
    "tiny": Profile(
        check_formats=tiny_formats,
        check_rows=(2,),
        layers=lambda: iter(list(tiny_formats())[:1]),
        layer_rows=(1,),
        alone_rows=(1,),
        chain=2,
        models=("int4",),
        size=Size(width=128, blocks=1, tokens=6, chunk=1),
    ),
}
