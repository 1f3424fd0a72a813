"""LAMB: Adam's step, scaled layer by layer (You et al., arXiv:1904.00962, algorithm 2).

    u = m' / (sqrt(v') + eps) + lambda w        w <- w - lr (|w| / |u|) u

Differs from the paper: |w| is not clipped from above; a parameter whose norm or step is 0 has the
ratio 1, as in the authors' code, so that biases and norms that start at 0 move.
"""

from typing import Any

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError


def trust_ratio(w: Tensor, u: Tensor) -> Tensor:
    """|w| / |u|, or 1 where either is 0.  w, u: one shape  ->  []"""
    of_w, of_u = w.norm(), u.norm()
    return torch.where((of_w > 0) & (of_u > 0), of_w / of_u, torch.ones_like(of_w))


class Lamb(torch.optim.Optimizer):
    """A plain `torch.optim.Optimizer`; defaults are the paper's for BERT."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        """params: as of any optimizer of torch."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. `closure` is refused, as in `Mkor`."""
        if closure is not None:
            raise ConfigError("lamb: step takes no closure. Call backward first, then step().")
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._step(w, group)

    def _step(self, w: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[w], group["betas"]
        if not state:
            state["steps"] = 0
            state["m"], state["v"] = torch.zeros_like(w), torch.zeros_like(w)
        state["steps"] += 1
        m, v, t = state["m"], state["v"], state["steps"]
        m.lerp_(w.grad, 1 - beta1)
        v.mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
        u = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        u = u + group["weight_decay"] * w
        w.sub_(group["lr"] * trust_ratio(w, u) * u)
