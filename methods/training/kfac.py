"""K-FAC, the baseline of MKOR's tables (Martens and Grosse, arXiv:1503.05671).

    A = E[a a^T],  G = E[g g^T]  over tokens      dW = (G + gI)^-1 (dL/dW) (A + aI)^-1

Where MKOR keeps inverses and updates them by one vector, K-FAC keeps the factors and inverts them:
`O(d^3)`.  a g = damping, with a / g the ratio of the factors' mean eigenvalues (section 6.3).

Differs from the paper: no momentum of its own, no adaptive damping, the empirical Fisher (labels of
the data, not samples of the model), one process.  The result has the norm of the gradient, as
MKOR's has, so that one learning rate means the same in both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trinity.methods.errors import ConfigError
from trinity.methods.training.mkor import precondition


@dataclass(frozen=True)
class KfacOptions:
    """damping: of both factors together   decay: share of a factor that an update keeps

    interval: steps between two updates and inversions   skip: globs of linears left to the base
    """

    damping: float = 1e-3
    decay: float = 0.95
    interval: int = 10
    skip: tuple[str, ...] = ()


def damped_inverses(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(A + aI)^-1 and (G + gI)^-1, symmetric positive.  A: [in, in]  G: [out, out]"""
    means = A.diagonal().mean(), G.diagonal().mean()
    tiny = torch.finfo(A.dtype).tiny
    ratio = (means[0].clamp(min=tiny) / means[1].clamp(min=tiny)).sqrt()
    root = damping**0.5
    return _inverse(A, root * ratio), _inverse(G, root / ratio)


def _inverse(M: Tensor, by: Tensor) -> Tensor:
    damped = M + by * torch.eye(len(M), dtype=M.dtype, device=M.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


class Kfac(torch.optim.Optimizer):
    """Preconditions the gradients of every `nn.Linear` of `model`, then lets `base` step."""

    def __init__(
        self, model: nn.Module, base: torch.optim.Optimizer, options: KfacOptions | None = None
    ) -> None:
        """base: over the model's parameters; its groups are this optimizer's."""
        super().__init__(base.param_groups, {})
        self.base, self.options = base, options or KfacOptions()
        self.param_groups = base.param_groups
        self.linears: Mapping[str, nn.Linear] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and not any(fnmatchcase(name, glob) for glob in self.options.skip)
        }
        if not self.linears:
            raise ConfigError("kfac: no nn.Linear of the model is left. Use the base alone.")
        self.steps = 0
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.inverses: dict[str, tuple[Tensor, Tensor]] = {}
        self.seen: dict[str, list[tuple[Tensor, Tensor, int]]] = {n: [] for n in self.linears}
        self.handles: list[RemovableHandle] = [
            module.register_forward_hook(self._hook(name)) for name, module in self.linears.items()
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.steps % self.options.interval or not output.requires_grad:
                return
            a = inputs[0].detach().float().flatten(0, -2)
            if getattr(module, "bias", None) is not None:
                a = torch.cat([a, a.new_ones(len(a), 1)], 1)

            def backward(gradient: Tensor) -> None:
                # The loss is a mean over tokens; the gradient of one token's own loss is
                # `tokens` times as large.
                g = gradient.float().flatten(0, -2) * len(a)
                self.seen[name].append((a.T @ a, g.T @ g, len(a)))

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. `closure` is refused: it would run the hooks several times."""
        if closure is not None:
            raise ConfigError("kfac: step takes no closure. Call backward first, then step().")
        if self.steps % self.options.interval == 0:
            self._update_factors()
        for name, linear in self.linears.items():
            if name in self.inverses:
                self._precondition(linear, *self.inverses[name])
        self.steps += 1
        self.base.step()

    def _update_factors(self) -> None:
        for name, seen in self.seen.items():
            if not seen:
                continue
            tokens = sum(count for _, _, count in seen)
            new = (
                torch.stack([a for a, _, _ in seen]).sum(0) / tokens,
                torch.stack([g for _, g, _ in seen]).sum(0) / tokens,
            )
            old = self.factors.get(name, new)
            keep = self.options.decay
            A, G = (keep * o + (1 - keep) * n for o, n in zip(old, new, strict=True))
            self.factors[name] = (A, G)
            self.inverses[name] = damped_inverses(A, G, self.options.damping)
            self.seen[name] = []

    def _precondition(self, linear: nn.Linear, P_A: Tensor, P_G: Tensor) -> None:
        if linear.weight.grad is None:
            return
        parts = [linear.weight.grad]
        if getattr(linear, "bias", None) is not None and linear.bias.grad is not None:
            parts.append(linear.bias.grad[:, None])
        whole = torch.cat(parts, 1).float()
        new = precondition(P_G, whole, P_A[: whole.shape[1], : whole.shape[1]])
        linear.weight.grad.copy_(new[:, : linear.in_features])
        if len(parts) == 2:
            linear.bias.grad.copy_(new[:, -1])  # type: ignore[union-attr]  # told above

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self.handles:
            handle.remove()
