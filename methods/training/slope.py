"""SLoPe's training steps: double-pruned backward pass, static masks, sparse AdamW, lazy adapters
(Mozaffari et al., arXiv:2405.16325).

Tensors only; `trinity.harness.training.slope_linear` puts them in a model.

    Y  = X W^T                  W = W * R; R: N:M along the inputs, static            (eq. 2)
    dW = (dY^T X) * R           only kept entries have a gradient and moments         (eq. 3)
    dX = dY (W * R * C)         C: at most N of M along the outputs, by magnitude     (eq. 6)

R is not multiplied in where it would change no bit: W starts as zero outside R, and
`SparseMoments.step` writes kept entries alone.

Differs from the code: masks are `True` where kept everywhere (the performance code's pruner and its
optimiser read the mask with opposite signs); the adapters see the whole batch (the accuracy code
multiplies its first element only).
"""

from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM
from trinity.methods.tensors import nm_mask


def random_mask(shape: tuple[int, int], pattern: NM, generator: torch.Generator) -> Tensor:
    """The paper's mask: N random inputs of every M, drawn once.  -> bool [out, in]"""
    return nm_mask(torch.rand(shape, generator=generator), pattern)


def magnitude_mask(W: Tensor, pattern: NM) -> Tensor:
    """The code's mask: the N largest of every M at initialisation.  W: [out, in] -> bool"""
    return nm_mask(W.detach().abs().float(), pattern)


def double_mask(W: Tensor, R: Tensor, pattern: NM) -> Tensor:
    """R * C: of the entries that R keeps, at most N of every M consecutive outputs, by magnitude.

    W: [out, in]  R: bool [out, in]  ->  bool [out, in], a subset of R
    """
    if W.shape[0] % pattern.m:
        msg = (
            f"slope: the backward pass prunes {pattern} along the outputs, and out = {W.shape[0]} "
            f"is not a multiple of {pattern.m}. Leave this layer dense."
        )
        raise ConfigError(msg)
    kept = (W.detach() * R).abs().float().T.contiguous()
    return nm_mask(kept, pattern).T & R


def extra_sparsity(pattern: NM) -> float:
    """Fraction of all entries that C removes beyond a random R (lemma 2.1).

    E[max(Binomial(M, N/M) - N, 0)] / M: 12.5% for 1:2, 9.375% for 2:4.  For 2:8 the paper's text
    prints 3.39%, its formula 5.84%; this is the formula.
    """
    n, m, s = pattern.n, pattern.m, pattern.n / pattern.m
    return sum(comb(m, j) * s**j * (1 - s) ** (m - j) * (j - n) / m for j in range(n + 1, m + 1))


class DoublePruned(torch.autograd.Function):
    """`x -> x W^T` with the gradients of the equations above.

    x: [..., in]  W: [out, in], zero outside R  R, RC: bool [out, in]  ->  [..., out]
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, R: Tensor, RC: Tensor) -> Tensor:
        """ctx: autograd's, which has no public type."""
        ctx.save_for_backward(x, W, R, RC)
        return x @ W.T

    @staticmethod
    def backward(ctx: Any, *dY: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """dY: one gradient [..., out]  ->  gradients of x and of W."""
        x, W, R, RC = ctx.saved_tensors
        (gradient,) = dY
        rows = gradient.reshape(-1, gradient.shape[-1])
        # Under autocast the gradient is narrower than the weight; products take one type.
        columns = x.reshape(-1, x.shape[-1]).to(gradient.dtype)
        dW = (rows.T @ columns).to(W.dtype) * R
        dX = gradient @ (W * RC).to(gradient.dtype)
        return dX.to(x.dtype), dW, None, None


def double_pruned(x: Tensor, W: Tensor, R: Tensor, RC: Tensor) -> Tensor:
    """Apply `DoublePruned`.

    x: [..., in]  W: [out, in], zero outside R  R, RC: bool [out, in]  ->  [..., out]
    """
    result: Tensor = DoublePruned.apply(x, W, R, RC)  # type: ignore[no-untyped-call]  # torch's
    return result


def adapted(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """y + (x L) R / r.  x: [..., in]  y: [..., out]  left: [in, r]  right: [r, out]"""
    return y + (x @ left) @ right / left.shape[1]


def new_adapter(
    shape: tuple[int, int], rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A lazy adapter that changes nothing yet: L ~ N(0, 1) [in, r], R = 0 [r, out]."""
    out, d_in = shape
    return torch.randn(d_in, rank, generator=generator), torch.zeros(rank, out)


@dataclass(frozen=True)
class AdamW:
    """Options of `SparseMoments.step`; defaults are the paper code's."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


class SparseMoments:
    """AdamW on the kept entries alone: the moments are vectors [kept], not matrices."""

    def __init__(self, R: Tensor) -> None:
        """R: bool [out, in], the static mask."""
        self.kept = R.flatten().nonzero().squeeze(1)
        self.m = torch.zeros(len(self.kept), device=R.device)
        self.v = torch.zeros_like(self.m)
        self.steps = 0

    def step(self, W: Tensor, gradient: Tensor, options: AdamW) -> None:
        """Update W in place at the kept entries, and no other; decay is decoupled and comes first.

        W, gradient: [out, in], contiguous
        """
        self.steps += 1
        beta1, beta2 = options.betas
        flat = W.view(-1)
        values, g = flat[self.kept], gradient.view(-1)[self.kept]
        values.mul_(1 - options.lr * options.weight_decay)
        self.m.lerp_(g, 1 - beta1)
        self.v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (self.v / (1 - beta2**self.steps)).sqrt_().add_(options.eps)
        values.addcdiv_(self.m, root, value=-options.lr / (1 - beta1**self.steps))
        flat[self.kept] = values
