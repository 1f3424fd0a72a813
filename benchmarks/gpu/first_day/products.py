"""Single products in IREE modules: against float64, and timed in turn with torch's."""

import gzip
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.first_day.rows import Row, failed, row, seconds, speedup
from trinity.lowering.graph.annotate import function_name
from trinity.lowering.module.chain import CHAIN
from trinity.lowering.module.check import LAYER_TOLERANCE, relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.module.random_weights import random_weight
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.formats import CompressedWeight, WeightFormat

WARM_UP = 2
Case = Mapping[str, Any]
Call = Callable[[], object]


@lru_cache(maxsize=1)
def loaded(module: Path, target: str) -> Loaded:
    """A module on its device; kept for the next case, which is often of the same."""
    return Loaded(gzip.decompress(module.read_bytes()), targets.get(target))


@lru_cache(maxsize=1)
def stored(
    weight_format: WeightFormat, target: str
) -> tuple[CompressedWeight, tuple[Tensor, ...], str]:
    """A random weight, how a target stores it, and whose code multiplies with it."""
    weight = random_weight(weight_format)
    storage = storage_of(weight_format, targets.get(target))
    return weight, tuple(storage.pack(weight).values()), storage.path


def check(bundle: Path, case: Case, _: Any) -> list[Row]:
    """One product against float64."""
    return [_checked(bundle, case)]


def layer(bundle: Path, case: Case, options: Any) -> list[Row]:
    """One product against float64 and, if it is right, its time beside torch's."""
    right = _checked(bundle, case)
    if right["reason"]:
        why = f"{right['reason']} Nothing was timed."
        return [right, failed(case["name"], "seconds", why, path=right["path"])]
    weight_format = WeightFormat.from_json(case["format"])
    module = loaded(bundle / case["module"], case["target"])
    weight, tensors, path = stored(weight_format, case["target"])
    x = _inputs(case, weight_format)
    size, calls = sum(tensor.nbytes for tensor in tensors), case["chain"]
    sets = -(-options.rotate // (size * calls)) or 1
    weights = [[module.put(t) for _ in range(calls) for t in tensors] for _ in range(sets)]
    given, rotated = module.put(x), cycle(weights)
    dense, device, copies = torch_product(weight, x, options.rotate)
    samples = in_turn(
        {
            "iree": (lambda: module.fetch(module.call(CHAIN, [given, *next(rotated)])), calls),
            "torch": (dense, copies),
        },
        options.repeats,
    )
    about = {"shape": list(weight_format.shape), "rows": case["rows"], "device": device}
    about |= {"dtype": case["dtype"], "format": weight_format.label}
    ours = about | {"read_bytes": size, "rotated_copies": calls * sets, "products_per_call": calls}
    theirs = about | {"format": "float16" if device == "cuda" else "float32"}
    return [
        right,
        seconds(case["name"], samples["iree"], path=path, details=ours),
        seconds(case["name"], samples["torch"], engine="torch", path="reference", details=theirs),
        speedup(case["name"], samples["iree"], samples["torch"], path=path, details=ours),
    ]


def torch_product(weight: CompressedWeight, x: Tensor, rotate: int) -> tuple[Call, str, int]:
    """torch's dense product, float16 on its GPU, else float32 on the processor.

    rotate: bytes of copies, at least  -> calls of all copies in turn, where, and how many they are
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.float16 if device == "cuda" else torch.float32
    dense = weight.dequantize().to(device, kind)
    copies = [dense.clone() for _ in range(-(-rotate // dense.nbytes) or 1)]
    given = x.to(device, kind)

    def call() -> Tensor:
        result = given
        for copy in copies:
            result = given @ copy.T
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return call, device, len(copies)


def in_turn(calls: Mapping[str, tuple[Call, int]], repeats: int) -> dict[str, list[float]]:
    """Seconds of one of the products that each call makes, by the wall clock.

    calls: what ends when all its products are there, and how many those are
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + repeats):
        for name, (call, products) in calls.items():
            start = time.perf_counter()
            call()
            if number >= WARM_UP:
                samples[name].append((time.perf_counter() - start) / products)
    return samples


def _checked(bundle: Path, case: Case) -> Row:
    """A row of the largest difference from float64, as a part of the largest output."""
    weight_format = WeightFormat.from_json(case["format"])
    module = loaded(bundle / case["module"], case["target"])
    weight, tensors, path = stored(weight_format, case["target"])
    x = _inputs(case, weight_format)
    rounded = weight_format.inputs.rounded(x) if weight_format.inputs else x
    expected = rounded.double() @ weight.dequantize().double().T
    arguments = [module.put(tensor) for tensor in (x, *tensors)]
    found = module.fetch(module.call(function_name(weight_format, case["rows"]), arguments))
    error, allowed = relative_error(found, expected), LAYER_TOLERANCE[getattr(torch, case["dtype"])]
    details = {"format": weight_format.label, "shape": list(weight_format.shape)}
    details |= {"rows": case["rows"], "dtype": case["dtype"], "allowed": allowed, "error": error}
    if not error <= allowed:
        far = f"{error:.1e} of the largest output from float64"
        why = f"wrong: {far}, where {allowed:.0e} is allowed."
        return failed(case["name"], "relative_error", why, path=path, details=details)
    return row(case["name"], "relative_error", error, "1", path=path, details=details)


def _inputs(case: Case, weight_format: WeightFormat) -> Tensor:
    """Numbers of the model's type.  -> [rows, in], float32"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case["rows"], weight_format.shape[1], generator=generator)
    return x.to(getattr(torch, case["dtype"])).float()
