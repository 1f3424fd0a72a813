"""The suite `layers`: one product x W^T at a time, packed on an engine against dense in torch.

Weights are random numbers of a format: a product's time does not depend on them.  As many copies
are rotated as exceed the caches, because a decoder that has run 200 other layers since finds none
of this one's weights there.  A sample is the mean of products made one after the other, those of a
module in one call, each waiting for the one before.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor

from trinity.harness.engine import MeasurementPath
from trinity.harness.latency import ceilings, machine, timing
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Factor,
    Grid,
    Pattern,
    Quantized,
    Sparse,
    Unstructured,
    WeightFormat,
    format_of,
)

# (out, in) of the linears of one block, each shape once.
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "llama-2-7b": ((4096, 4096), (11008, 4096), (4096, 11008)),
    "llama-2-13b": ((5120, 5120), (13824, 5120), (5120, 13824)),
    "llama-2-70b": ((8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)),
    "opt-6.7b": ((4096, 4096), (16384, 4096), (4096, 16384)),
}
ROTATED_BYTES = 256 << 20  # of copies of one weight, at least
LONGEST_CHAIN = 32  # products of one call into a module


@dataclass(frozen=True, eq=False)
class Product:
    """One way to multiply, ready to be called.

    name: of the engine   read_bytes: of one copy of the weight   copies: that are rotated
    run: `calls` products one after the other, on the next copies; gives the last
    """

    name: str
    path: MeasurementPath
    read_bytes: int
    copies: int
    run: Callable[[], object]
    calls: int = 1

    def seconds(self) -> float:
        """Of one product, the mean of many."""
        return timing.back_to_back(self.run) / self.calls


# format of the product, weight, and input [rows, in] -> the product
MakeProduct = Callable[[WeightFormat, CompressedWeight, Tensor], Product]


def bench_layers(
    formats: Iterable[WeightFormat], rows: Iterable[int], repeats: int, makers: list[MakeProduct]
) -> list[Measurement]:
    """Every distinct format with every number of rows (tokens at once): seconds and speed-up.

    makers: the packed products to time; dense torch in float32 is what they are timed against
    """
    found: list[Measurement] = []
    for weight_format in dict.fromkeys(formats):
        weight = random_weight(weight_format)
        for count in rows:
            x = torch.randn(count, weight_format.shape[1])
            dense = torch_product(weight_format, weight, x)
            products = [make(weight_format, weight, x) for make in makers]
            found += _timed(products, dense, weight_format, count, repeats)
    return found


def torch_product(_: WeightFormat, weight: CompressedWeight, x: Tensor) -> Product:
    """Dense float32 in torch, on rotated copies.  x: [rows, in]"""
    dense = weight.dequantize().float()
    count = _copies(dense.nbytes)
    copies = cycle([dense.clone() for _ in range(count)])
    return Product("torch", "reference", dense.nbytes, count, lambda: x @ next(copies).T)


def iree_product(target: str) -> MakeProduct:
    """The packed weight in a module of many such products, on rotated copies."""
    # Imported here: the compiler is needed by this suite only.
    from trinity.lowering import targets
    from trinity.lowering.chain import CHAIN, chain_module
    from trinity.lowering.kernels.choose import storage_of
    from trinity.lowering.storage import Layout

    place = targets.get(target)

    def make(weight_format: WeightFormat, weight: CompressedWeight, x: Tensor) -> Product:
        stored = storage_of(weight_format, place)
        packed = list(stored.pack(weight).values())
        size = sum(t.nbytes for t in packed)
        copies = _copies(size)
        calls = min(copies, LONGEST_CHAIN)
        module = chain_module(weight_format, place, len(x), calls)
        given = module.put(x)
        weights = [
            [module.put(t) for _ in range(calls) for t in packed]
            for _ in range(-(-copies // calls))
        ]
        rotated = cycle(weights)
        return Product(
            "iree",
            "compiled" if isinstance(stored, Layout) else "kernel",
            size,
            calls * len(weights),
            # Fetching the result waits for it.
            lambda: module.fetch(module.call(CHAIN, [given, *next(rotated)])),
            calls,
        )

    return make


def resized(weight_format: WeightFormat, shape: tuple[int, int]) -> WeightFormat:
    """The same kind of format at another shape; groups keep their size, adapters their share."""
    grid, adapter = weight_format.grid, weight_format.adapter
    if grid:
        grid = _resized_grid(grid, weight_format.shape[1], shape)
    if adapter:
        share = adapter.rank / min(weight_format.shape)
        rank = max(1, int(share * min(shape)))
        high, low = adapter.B, adapter.A
        if high and high.grid:
            grid_of = _resized_grid(high.grid, adapter.rank, (shape[0], rank))
            high = replace(high, grid=grid_of)
        if low and low.grid:
            low = replace(
                low, grid=_resized_grid(low.grid, weight_format.shape[1], (rank, shape[1]))
            )
        adapter = replace(adapter, rank=rank, B=high, A=low)
    return replace(weight_format, shape=shape, grid=grid, adapter=adapter)


def _resized_grid(grid: Grid, d_in: int, shape: tuple[int, int]) -> Grid:
    """The grid of a weight of `d_in` inputs for one of `shape`."""
    rows, groups = grid.scale_shape
    columns = 1 if groups == 1 else shape[1] // (d_in // groups)
    return replace(grid, scale_shape=(1 if rows == 1 else shape[0], columns))


def random_weight(weight_format: WeightFormat) -> CompressedWeight:
    """Random numbers of a format, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    shape, grid = weight_format.shape, weight_format.grid
    base: Dense | Quantized | Sparse
    if grid is None:
        values = torch.randn(shape, generator=generator)
        base = Dense(values.to(getattr(torch, str(weight_format.dtype))))
    else:
        scale = torch.rand(grid.scale_shape, generator=generator) + 0.5
        scale = (scale / 2**grid.bits).to(getattr(torch, grid.scale_dtype))
        codes = torch.randint(2**grid.bits, shape, generator=generator)
        if grid.symmetric:
            centred = (codes - 2 ** (grid.bits - 1)).to(torch.int8)
            base = Quantized(centred, scale, None, grid.bits)
        else:
            zero = torch.full(grid.scale_shape, 2 ** (grid.bits - 1), dtype=torch.uint8)
            base = Quantized(codes.to(torch.uint8), scale, zero, grid.bits)
    if weight_format.pattern:
        base = Sparse(base, _mask(shape, weight_format.pattern, generator), weight_format.pattern)
    if weight_format.adapter is None:
        return base
    factors: list[Factor] = []
    for name in ("B", "A"):
        factor = random_weight(weight_format.factor(name))
        assert not isinstance(factor, Adapted)  # a factor has no adapter
        factors.append(factor.values if isinstance(factor, Dense) else factor)
    made = Adapted(base, *factors)
    if format_of(made) != replace(weight_format, inputs=None):
        msg = f"layers: no random weight of format '{weight_format.label}' can be made yet."
        raise UnsupportedError(msg)
    return made


def _timed(
    products: list[Product], dense: Product, weight_format: WeightFormat, rows: int, repeats: int
) -> Iterator[Measurement]:
    candidates = [*products, dense, dense]
    for product in candidates:
        timing.warm_up(product.run)
    with machine.watched() as seen:
        runs = timing.interleaved(
            [product.seconds for product in candidates],
            warmup=0,
            repeats=repeats,
        )
    against = timing.Baseline(dense, "the same product, dense float32", *map(tuple, runs[-2:]))
    shape = weight_format.shape
    name = f"layer {shape[0]}x{shape[1]} {weight_format.label}, {rows} rows"
    bandwidth, rate = ceilings.ceiling(ceilings.READ), ceilings.ceiling(ceilings.MATMUL)
    for product, samples in zip([*products, dense], runs, strict=False):
        details = {
            "shape": list(shape),
            "rows": rows,
            "format": weight_format.label if product is not dense else "float32",
            "read_bytes": product.read_bytes,
            "rotated_copies": product.copies,
            "products_per_call": product.calls,
            "repeats": repeats,
            **machine.describe(),
            **seen,
        }
        m = timing.measurement(
            product, name, "seconds", "s", samples, higher_is_better=False, details=details
        )
        floor = product.read_bytes / bandwidth
        why = "stored bytes over read bandwidth"
        if product is dense or not weight_format.inputs:
            floor = max(floor, 2 * rows * shape[0] * shape[1] / rate)
            why = f"the larger of {why} and products over their rate in float32"
        yield ceilings.with_share(m, floor, why)
        if product is not dense:
            yield timing.speedup(m, against)


def _copies(size: int) -> int:
    return max(1, -(-ROTATED_BYTES // size))


def _mask(shape: tuple[int, int], pattern: Pattern, generator: torch.Generator) -> Tensor:
    if isinstance(pattern, NM):
        groups = (shape[0], shape[1] // pattern.m, pattern.m)
        places = torch.rand(groups, generator=generator).argsort(-1)
        return (places < pattern.n).view(shape)
    assert isinstance(pattern, Unstructured)
    places = torch.rand(shape, generator=generator).argsort(-1)
    return places >= round(shape[1] * pattern.sparsity)
