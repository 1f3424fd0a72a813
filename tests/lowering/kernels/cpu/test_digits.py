"""Digits of activations: as many as the model's type needs."""

from collections.abc import Callable

import pytest
import torch

from tests.lowering.kernels.portable import compiled
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.digits import largest_integer
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour, for_type
from trinity.lowering.kernels.cpu.linear import linear_kernels
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, format_of

CPU = targets.get("llvm-cpu")


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 3), ("float16", 2), ("bfloat16", 2)])
def test_a_type_gets_digits_that_round_its_largest_less_than_it_did(
    dtype: str, digits: int
) -> None:
    for made in INSTRUCTIONS.values():
        assert for_type(made, dtype).digits == digits
    half_step = 0.5 / largest_integer(digits)  # of a block's largest activation
    # 127 is not quite 128, so 24 bits are not quite those of a float32.
    assert half_step < 1.01 * torch.finfo(getattr(torch, dtype)).eps / 2


@pytest.mark.parametrize("flavour", ["avx512-vnni", "avx2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_activation_of_half_precision_is_further_off_than_the_bound(
    make_weight: Callable[..., CompressedWeight], flavour: Flavour, dtype: str
) -> None:
    made = for_type(INSTRUCTIONS[flavour], dtype)
    weight = make_weight((20, 128), "int4 group 64", None, 0)
    panels, counts = Panels(format_of(weight)), (1, 3)
    kernels = [linear_kernels(f"rows_{m}", panels, m, made) for m in counts]
    text = with_kernels("module {\n}\n", kernels).replace("func.func private", "func.func")
    module = Loaded(compiled(text, flavour, CPU), CPU)
    stored = [module.put(tensor) for tensor in panels.pack(weight).values()]
    x = (torch.randn(3, 128) * torch.logspace(-3, 3, 128)).to(getattr(torch, dtype)).float()
    dense = weight.dequantize().double()
    blocks = x.view(3, 2, 64).abs().amax(-1).double()
    # Half a step of each block for each of its weights, and float32's own rounding.
    weights = dense.abs().view(20, 2, 64).sum(-1)
    bound = blocks @ weights.T * 0.5 / largest_integer(2)
    bound += 1e-6 * (x.double().abs() @ dense.abs().T)
    for m in counts:
        found = module.fetch(module.call(f"rows_{m}", [module.put(x[:m]), *stored])).double()
        assert ((found - x[:m].double() @ dense.T).abs() <= bound[:m]).all()
