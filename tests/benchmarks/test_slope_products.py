"""benchmarks/slope_products.py: what is packed is what SLoPe multiplies with, on a tiny layer."""

import pytest
import torch

from benchmarks import slope_products
from trinity.lowering.kernels.cpu import cpus
from trinity.methods.training.slope import double_pruned


def test_packed_products_are_those_of_training() -> None:
    """Oracle: autograd's gradients through the double-pruned step, and float64 products."""
    layer = slope_products.Layer((32, 64))
    generator = torch.Generator().manual_seed(1)
    inputs, gradient = (torch.randn(3, n, generator=generator) for n in (64, 32))
    x = inputs.clone().requires_grad_()
    y = double_pruned(x, layer.W, layer.R, layer.RC)
    y.backward(gradient)
    forward, backward = layer.forward_weight(), layer.backward_weight()
    made = (forward, inputs, y), (backward, gradient, x.grad)
    for weight, given, wanted in made:
        exact = given.double() @ weight.dequantize().double().T
        torch.testing.assert_close(wanted, exact.float(), rtol=1e-4, atol=1e-5)
        product = slope_products.packed(weight, given, cpus.HOST)
        found = torch.as_tensor(product.run())
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_the_transposed_weight_is_two_four_along_the_outputs() -> None:
    weight = slope_products.Layer((32, 64)).backward_weight()
    assert weight.dequantize().shape == (64, 32)
    assert set(weight.mask.view(64, -1, 4).sum(-1).flatten().tolist()) == {2}


def test_the_table_has_a_row_for_every_way() -> None:
    found = {1: {"forward": {"dense": [2e-3], "packed": [1e-3]}}}
    text = slope_products.table(found)
    assert "| 1 | forward | dense | 2.000 | 1.00 |" in text
    assert "| 1 | forward | packed | 1.000 | 2.00 |" in text
    with pytest.raises(KeyError):
        slope_products.table({1: {"forward": {"packed": [1e-3]}}})
