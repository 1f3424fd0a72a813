"""Kernels for Arm on emulated processors, against the float64 product of the weight they hold."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.lowering.kernels import arm
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.digits import largest_integer
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour, for_type
from trinity.lowering.kernels.cpu.linear import linear_kernels
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.module.check import relative_error
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, InputFormat, format_of

Make = Callable[..., CompressedWeight]
ROWS = (1, 16)
# Shapes that fill no panel, tile or block. One flavour each: what stands between the instructions
# is the same text, and `test_flavours.py` compares both flavours with all others.
FORMATS: dict[Flavour, dict[str, tuple[object, ...]]] = {
    "neon-i8mm": {
        "4 bits": ((70, 172), "int4 tensor", None, 0),
        "8 bits": ((40, 96), "int8 group 48 asymmetric", None, 0),
        "3 bits with an adapter": ((3, 43), "int3 channel asymmetric", None, 2),
        "bitmap": ((30, 64), "int4 group 16 asymmetric", "50%", 3),
        "bfloat16 in 2:4": ((70, 44), "bfloat16", "2:4", 0),
        "float32": ((40, 66), "float32", None, 0),
    },
    "neon-dot": {
        "2 bits": ((4, 30), "int2 group 10", None, 0),
        "2:4 with an adapter": ((130, 172), "int4 channel", "2:4", 5),
        "2:4 of 8 bits": ((30, 64), "int8 group 16", "2:4", 0),
        "float16 with an adapter": ((5, 7), "float16", None, 3),
        "float16 in a bitmap": ((33, 64), "float16", "50%", 0),
    },
}


@dataclass(frozen=True)
class Case:
    """A weight and inputs.  x: [rows, in]"""

    weight: CompressedWeight
    x: Tensor
    inputs: InputFormat | None = None

    def panels(self, flavour: Flavour) -> Panels:
        """Its storage."""
        of = replace(format_of(self.weight), inputs=self.inputs)
        return INSTRUCTIONS[flavour].panels(of)

    @property
    def expected(self) -> Tensor:
        """In float64."""
        x = self.inputs.rounded(self.x) if self.inputs else self.x
        return x.double() @ self.weight.dequantize().double().T


def cases_of(make_weight: Make, formats: Mapping[str, tuple[object, ...]]) -> dict[str, Case]:
    found = {}
    for name, (shape, *kind) in formats.items():
        weight = make_weight(shape, *kind, torch.float16)
        found[name] = Case(weight, torch.randn(max(ROWS), weight.shape[1]))
    return found


def emulated(cases: Mapping[str, Case], flavour: Flavour, dtype: str = "float32") -> arm.Emulated:
    """A module with a function for every case and number of rows."""
    made = for_type(INSTRUCTIONS[flavour], dtype)
    kernels = [
        linear_kernels(f"case_{i}_{m}", case.panels(flavour), m, made)
        for i, case in enumerate(cases.values())
        for m in ROWS
    ]
    text = with_kernels("module {\n}\n", kernels).replace("func.func private", "func.func")
    return arm.loaded(text, flavour)


def products(
    cases: Mapping[str, Case], flavour: Flavour, dtype: str = "float32"
) -> dict[tuple[str, int], Tensor]:
    """Of every case and number of rows."""
    module, found = emulated(cases, flavour, dtype), {}
    for i, (name, case) in enumerate(cases.items()):
        stored = case.panels(flavour).pack(case.weight).values()
        for m in ROWS:
            found[name, m] = module.call(f"case_{i}_{m}", [case.x[:m], *stored])
    return found


@pytest.fixture(autouse=True, scope="module")
def _emulator() -> None:
    arm.require()


@pytest.mark.parametrize(
    ("processor", "dot_products", "i8mm"),
    [("max", True, True), ("neoverse-n1", True, False), ("cortex-a72", False, False)],
)
def test_emulated_processors_have_what_flavours_need(
    processor: str, dot_products: bool, i8mm: bool
) -> None:
    lines = [line.split() for line in arm.ran(processor, "iree-cpuinfo").stdout.splitlines()]
    found = {name: number == "1" for name, number in lines}
    assert (found["dotprod"], found["i8mm"]) == (dot_products, i8mm)


@pytest.mark.parametrize("flavour", list(arm.CPUS))
def test_a_kind_of_processor_has_the_flavour_that_is_tested_with_it(flavour: Flavour) -> None:
    kernels = targets.get("llvm-cpu", arm.CPUS[flavour][0]).kernels
    assert kernels
    assert kernels().flavour == flavour


@pytest.mark.parametrize("flavour", list(arm.CPUS))
def test_every_kind_of_format_gives_the_float64_product(
    make_weight: Make, make_packed_adapter: Make, flavour: Flavour
) -> None:
    cases = cases_of(make_weight, FORMATS[flavour])
    if flavour == "neon-dot":
        packed = make_packed_adapter((40, 48), 16, "int4 channel", "int4 group 8", "int4 group 24")
        cases["packed adapter"] = Case(packed, torch.randn(max(ROWS), 48))
        rounded = make_weight((20, 128), "int4 group 64")
        cases["rounded"] = Case(rounded, torch.randn(max(ROWS), 128), InputFormat("int8", 64))
    expected = {name: case.expected for name, case in cases.items()}
    found = products(cases, flavour)
    errors = {key: relative_error(y, expected[key[0]][: key[1]]) for key, y in found.items()}
    assert {key: error for key, error in errors.items() if not error < 1e-6} == {}


def test_activations_of_half_precision_are_within_the_bound_of_two_digits(
    make_weight: Make,
) -> None:
    weight = make_weight((20, 128), "int4 group 64")
    x = (torch.randn(max(ROWS), 128) * torch.logspace(-3, 3, 128)).half().float()
    cases = {"half": Case(weight, x)}
    dense = weight.dequantize().double().abs()
    # Half a step of each block for each of its weights, and float32's own rounding.
    blocks, weights = x.view(-1, 2, 64).abs().amax(-1).double(), dense.view(20, 2, 64).sum(-1)
    bound = blocks @ weights.T * 0.5 / largest_integer(2) + 1e-6 * (x.double().abs() @ dense.T)
    for (_, m), y in products(cases, "neon-dot", "float16").items():
        assert ((y.double() - cases["half"].expected[:m]).abs() <= bound[:m]).all()


def test_a_processor_without_i8mm_refuses_the_flavour_that_needs_it(make_weight: Make) -> None:
    cases = cases_of(make_weight, {"8 bits": ((20, 64), "int8 channel", None, 0)})
    module, case = emulated(cases, "neon-i8mm"), cases["8 bits"]
    module.processor = "neoverse-n1"
    arguments = [case.x[:1], *case.panels("neon-i8mm").pack(case.weight).values()]
    assert module.run("case_0_1", arguments, []).returncode == -signal.SIGILL
