"""The same kernels in every flavour: what one gives, all give, and it is the float64 product."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.lowering.kernels import arm
from tests.lowering.kernels.portable import compiled
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour
from trinity.lowering.kernels.cpu.linear import linear_kernels
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, InputFormat, WeightFormat, format_of

Make = Callable[..., CompressedWeight]
Module = Loaded | arm.Emulated
CPU = targets.get("llvm-cpu")
FLAVOURS: tuple[Flavour, ...] = (
    "avx512-vnni",
    "avx-vnni",
    "avx2",
    "neon-i8mm",
    "neon-dot",
)
# Codes are used as they are unpacked, and kept for several rows.  Tiles of other heights are other
# loops around the same text: `test_product.py` has them.
ROWS = (1, 7)
FORMATS = {
    "nibbles": ((20, 44), "int4 tensor", None, 3),
    "bytes": ((20, 96), "int8 group 48 asymmetric", None, 0),
    "kept": ((20, 64), "int4 group 16 asymmetric", "2:4", 0),
    "half": ((20, 600), "int4 group 300", "2:4", 3),
    "half of 3 bits": ((20, 100), "int3 channel asymmetric", "1:2", 0),
    "half, rounded": ((20, 128), "int4 group 64", "2:4", 0),
    "stream": ((20, 32), "int4 channel", "50%", 0),
    "full stream": ((40, 256), "int4 group 64 asymmetric", "30%", 0),
    "rounded": ((20, 128), "int4 group 64", None, 0),
    "e2m1": ((20, 64), "e2m1 group 16 e4m3 outer", None, 3),
    "half of e2m1": ((20, 64), "e2m1 group 32 e8m0", "2:4", 0),
    "stream of e2m1": ((20, 32), "e2m1 channel", "50%", 0),
    "e2m1, rounded": ((20, 128), "e2m1 group 64", None, 0),
    "nf4": ((20, 96), "nf4 group 48 e4m3 outer", None, 0),
    "half of nf4": ((20, 64), "nf4 group 64", "2:4", 0),
    "e4m3": ((20, 60), "e4m3 channel", None, 0),
    "rows": ((20, 60), "rows of 3", None, 0),
    "nested": ((20, 80), "nested 3 group 16", None, 3),
    "nested, rounded": ((20, 128), "nested 4 group 32", None, 0),
    "half of floats": ((20, 44), "float16", "2:4", 0),
    "half of wide floats": ((70, 96), "float32", "1:2", 3),
    "half of floats, no whole word": ((20, 46), "bfloat16", "1:2", 0),
    "stream of floats": ((40, 96), "float32", "50%", 0),
    "floats of a mask": ((20, 44), "float16", "50%", 0),
}
# What stands between their instructions is the same: these are all written out.
FOR_ARM = ("nibbles", "bytes", "e2m1", "nf4")
EMULATED = (*FOR_ARM, "kept", "stream", "half of nf4", "e4m3")


@dataclass
class Case:
    """A weight, its format and an input."""

    weight: CompressedWeight
    format: WeightFormat
    x: Tensor


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Tensor]]:
    """Products that were computed, by flavour or test, format and rows."""
    return {}


def cases_of(make_weight: Make, names: Collection[str]) -> dict[str, Case]:
    """Some formats, the same weights and inputs in every call."""
    found = {}
    for name, (shape, kind, pattern, rank) in FORMATS.items():
        if name not in names:
            continue
        torch.manual_seed(0)
        weight = make_weight(shape, kind, pattern, rank, torch.float16)
        inputs = InputFormat("int8", 64) if "rounded" in name else None
        of = replace(format_of(weight), inputs=inputs)
        found[name] = Case(weight, of, torch.randn(max(ROWS), shape[1]))
    return found


def products(
    cases: dict[str, Case], flavour: Flavour, load: Callable[[str, Flavour], Module]
) -> dict[str, Tensor]:
    """Of every case and number of rows, from one module.  load: a text, of a flavour"""
    made = INSTRUCTIONS[flavour]
    panels = {name: made.panels(case.format) for name, case in cases.items()}
    kernels = [
        linear_kernels(f"of_{number}_{m}", panels[name], m, made)
        for number, name in enumerate(cases)
        for m in ROWS
    ]
    text = with_kernels("module {\n}\n", kernels).replace("func.func private", "func.func")
    module, found = load(text, flavour), {}
    for number, (name, case) in enumerate(cases.items()):
        stored = [module.put(tensor) for tensor in panels[name].pack(case.weight).values()]
        for m in ROWS:
            y = module.call(f"of_{number}_{m}", [module.put(case.x[:m]), *stored])
            found[f"{name}_{m}"] = module.fetch(y)
    return found


def here(text: str, flavour: Flavour) -> Loaded:
    """On this machine, what it lacks written out."""
    return Loaded(compiled(text, flavour, CPU), CPU)


def check(
    cases: dict[str, Case], found: dict[str, Tensor], results: dict[str, dict[str, Tensor]]
) -> None:
    """Products against float64, and against all that were computed before."""
    for name, case in cases.items():
        inputs = case.format.inputs
        x = inputs.rounded(case.x) if inputs else case.x
        expected = x.double() @ case.weight.dequantize().double().T
        for m in ROWS:
            assert relative_error(found[f"{name}_{m}"], expected[:m]) < 1e-6, name
    # Sums of integers are exact, and floats are added in one order: not a bit may differ.
    for name, y in found.items():
        assert all(torch.equal(y, other[name]) for other in results.values() if name in other), name


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_flavour_gives_the_float64_product_and_what_others_give(
    make_weight: Make, results: dict[str, dict[str, Tensor]], flavour: Flavour
) -> None:
    cases = cases_of(make_weight, FOR_ARM if "neon" in flavour else FORMATS)
    results[flavour] = products(cases, flavour, here)
    check(cases, results[flavour], results)


@pytest.mark.parametrize("flavour", list(arm.CPUS))
def test_an_emulated_arm_processor_gives_the_same_bits_as_all_others(
    make_weight: Make, results: dict[str, dict[str, Tensor]], flavour: Flavour
) -> None:
    arm.require()
    cases = cases_of(make_weight, EMULATED)
    if not results:
        results["avx2"] = products(cases, "avx2", here)
    results[f"{flavour}, emulated"] = products(cases, flavour, arm.loaded)
    check(cases, results[f"{flavour}, emulated"], results)
