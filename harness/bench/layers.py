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

from trinity.harness.latency import machine, timing
from trinity.harness.latency.ceilings import Ceilings, with_share
from trinity.harness.records import facts
from trinity.harness.records.measurement import Measurement, MeasurementPath
from trinity.lowering.kernels.cpu.cpus import HOST
from trinity.lowering.module.random_weights import random_weight
from trinity.methods.errors import LoweringError
from trinity.methods.formats import (
    Codebook,
    CompressedWeight,
    Grid,
    NestedGrid,
    RowCodebook,
    ValuesFormat,
    WeightFormat,
)

# (out, in) of the linears of one block, each shape once.
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "llama-2-7b": ((4096, 4096), (11008, 4096), (4096, 11008)),
    "llama-2-13b": ((5120, 5120), (13824, 5120), (5120, 13824)),
    "llama-2-70b": ((8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)),
    "opt-6.7b": ((4096, 4096), (16384, 4096), (4096, 16384)),
}
ROTATED_BYTES = 256 << 20  # of copies of one weight, at least
# Products of one call into a module, by rows: enough that the call itself, some 0.1 ms, is little
# beside them, and few enough that a sample of many rows takes no second.
LONGEST_CHAIN, SHORTEST_CHAIN, CHAINED_ROWS = 32, 4, 128


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
    formats: Iterable[WeightFormat],
    rows: Iterable[int],
    repeats: int,
    makers: list[MakeProduct],
    limits: Ceilings,
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
            found += _timed(products, dense, weight_format, count, repeats, limits)
    return found


def torch_product(_: WeightFormat, weight: CompressedWeight, x: Tensor) -> Product:
    """Dense float32 in torch, on rotated copies.  x: [rows, in]"""
    dense = weight.dequantize().float()
    count = _copies(dense.nbytes)
    copies = cycle([dense.clone() for _ in range(count)])
    return Product("torch", "reference", dense.nbytes, count, lambda: x @ next(copies).T)


def iree_product(target: str, cpu: str = HOST) -> MakeProduct:
    """The packed weight in a module of many such products, on rotated copies.

    cpu: kind of processor whose instructions it uses
    """
    # Imported here: the compiler is needed by this suite only.
    from trinity.lowering.module.chain import CHAIN, chain_module
    from trinity.lowering.targets import targets
    from trinity.lowering.targets.choose import storage_of

    place = targets.get(target, cpu)

    def make(weight_format: WeightFormat, weight: CompressedWeight, x: Tensor) -> Product:
        stored = storage_of(weight_format, place)
        packed = list(stored.pack(weight).values())
        size = sum(t.nbytes for t in packed)
        copies = _copies(size)
        calls = min(copies, chained(len(x)))
        module = chain_module(weight_format, place, len(x), calls)
        given = module.put(x)
        weights = [
            [module.put(t) for _ in range(calls) for t in packed]
            for _ in range(-(-copies // calls))
        ]
        rotated = cycle(weights)
        return Product(
            "iree",
            stored.path,
            size,
            calls * len(weights),
            # Fetching the result waits for it.
            lambda: module.fetch(module.call(CHAIN, [given, *next(rotated)])),
            calls,
        )

    return make


def chained(rows: int) -> int:
    """How many products of so many rows are made in one call, at most."""
    return max(SHORTEST_CHAIN, min(LONGEST_CHAIN, CHAINED_ROWS // rows))


def resized(weight_format: WeightFormat, shape: tuple[int, int]) -> WeightFormat:
    """The same kind of format at another shape; groups keep their size, adapters their share."""
    adapter = weight_format.adapter
    values = _resized_values(weight_format.values, weight_format.shape[1], shape)
    if adapter:
        share = adapter.rank / min(weight_format.shape)
        rank = max(1, int(share * min(shape)))
        high, low = adapter.B, adapter.A
        if high:
            made = _resized_values(high.values, adapter.rank, (shape[0], rank))
            high = replace(high, values=made)
        if low:
            made = _resized_values(low.values, weight_format.shape[1], (rank, shape[1]))
            low = replace(low, values=made)
        adapter = replace(adapter, rank=rank, B=high, A=low)
    outliers = weight_format.outliers
    if outliers:
        room = max(1, round(outliers.room * shape[1] / weight_format.shape[1]))
        outliers = replace(outliers, room=room)
    return replace(weight_format, shape=shape, values=values, adapter=adapter, outliers=outliers)


def _resized_values(values: ValuesFormat, d_in: int, shape: tuple[int, int]) -> ValuesFormat:
    """What the values of a weight of `d_in` inputs are for one of `shape`."""
    if isinstance(values, RowCodebook) and values.tables > 1:
        return replace(values, tables=shape[0])
    if isinstance(values, NestedGrid):
        return replace(values, groups=shape[1] // (d_in // values.groups))
    if not isinstance(values, Grid | Codebook):
        return values
    rows, groups = values.scale_shape
    columns = 1 if groups == 1 else shape[1] // (d_in // groups)
    return replace(values, scale_shape=(1 if rows == 1 else shape[0], columns))


def _timed(
    products: list[Product],
    dense: Product,
    weight_format: WeightFormat,
    rows: int,
    repeats: int,
    limits: Ceilings,
) -> Iterator[Measurement]:
    candidates = [*products, dense, dense]
    for product in candidates:
        timing.warm_up(product.run)
        _check_numbers(product, weight_format)
    with machine.watched() as seen:
        runs = timing.interleaved(
            [product.seconds for product in candidates],
            warmup=0,
            repeats=repeats,
        )
    against = timing.Baseline(dense, "the same product, dense float32", *map(tuple, runs[-2:]))
    shape = weight_format.shape
    name = f"layer {shape[0]}x{shape[1]} {weight_format.label}, {rows} rows"
    bandwidth, rate = limits.read, limits.products("float32")
    for product, samples in zip([*products, dense], runs, strict=False):
        made = facts.Product(shape=list(shape), rows=rows, read_bytes=product.read_bytes)
        details = made.details() | {
            "format": weight_format.label if product is not dense else "float32",
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
        yield with_share(m, floor, why)
        if product is not dense:
            yield timing.speedup(m, against)


def _check_numbers(product: Product, weight_format: WeightFormat) -> None:
    """A product that computes no numbers is not timed."""
    result = product.run()
    if isinstance(result, Tensor) and not bool(result.isfinite().all()):
        msg = (
            f"layers: the product with {weight_format.label} {list(weight_format.shape)} in "
            f"{product.name} gives NaN or infinity for random weights: it is wrong, or its type "
            f"is too small. Please report it."
        )
        raise LoweringError(msg)


def _copies(size: int) -> int:
    return max(1, -(-ROTATED_BYTES // size))
