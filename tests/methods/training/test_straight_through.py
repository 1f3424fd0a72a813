"""methods/training/straight_through.py."""

import torch

from tests.methods.samples import GridCase, assert_same_weight, every_kind, random_quantized
from trinity.methods.formats import Adapted
from trinity.methods.training.straight_through import like, straight_through


def test_gradients_pass_the_rounding_as_if_it_were_not_there() -> None:
    stored = random_quantized(4, 8, GridCase(4))
    x = (stored.dequantize() + 0.03).requires_grad_()
    weights = torch.randn(4, 8)
    rounded = straight_through(stored, x)
    (rounded * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, weights)
    torch.testing.assert_close(rounded.detach(), stored.dequantize())


def test_the_same_numbers_in_the_same_form_are_the_same_weight() -> None:
    for weight in every_kind().values():
        if isinstance(weight, Adapted):
            continue
        found = like(weight, weight.dequantize())
        assert isinstance(found, type(weight))
        assert_same_weight(found, weight)
