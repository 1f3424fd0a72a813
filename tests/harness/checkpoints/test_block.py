import pytest
import torch

from trinity.harness.checkpoints import block
from trinity.methods.formats import Dense


@pytest.mark.parametrize("inputs", [3, block.PANEL, block.PANEL + 1, 2 * block.PANEL + 40])
def test_the_error_at_the_outputs_is_that_of_the_product_with_every_input(inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    W, noise = torch.randn(2, 7, inputs, generator=generator)
    X = torch.randn(50, inputs, generator=generator) * torch.rand(inputs, generator=generator)
    weight = Dense(W + 0.1 * noise)
    error, norm = block.relative_error(W, weight, X.T @ X)
    W64, X64, delta = W.double(), X.double(), weight.dequantize().double() - W.double()
    expected = (X64 @ delta.T).norm() / (X64 @ W64.T).norm()
    assert (error, norm) == (pytest.approx(float(expected), rel=1e-5), "hessian")
    assert block.relative_error(W, Dense(W), X.T @ X) == (0.0, "hessian")
