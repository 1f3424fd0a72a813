"""MKOR: rank-1 updates of inverse Kronecker factors (Mozaffari et al., arXiv:2306.01685).

    dW = P_G (dL/dW) P_A,  rescaled to the norm of dL/dW

P_A and P_G follow the mean input `a` and the mean output gradient `g` of each `nn.Linear`.

Differs from the paper: the default update is the exact inverse, which the printed formula is not;
`paper` and `code` are options. The rule of MKOR-H is ours: the published package has none
(see `Mkor.observe`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trinity.methods.errors import ConfigError

Update = Literal["exact", "paper", "code"]
CODE_DECAY = 0.95  # fixed in the published code, which ignores its own argument
CODE_LIMIT = 2.0  # largest magnitude before the published code resets a factor
CODE_CLAMP = 100.0  # bound of the statistics in the published code


def exact_update(P: Tensor, v: Tensor, decay: float) -> Tensor:
    """Inverse of `decay L + (1 - decay) v v^T`, L = P^-1 (Sherman-Morrison).  P: [d, d]  v: [d]"""
    Pv = P @ v
    scale = (1 - decay) / (decay**2 * (1 + (1 - decay) / decay * (v @ Pv)))
    return P / decay - scale * torch.outer(Pv, Pv)


def paper_update(P: Tensor, v: Tensor, decay: float) -> Tensor:
    """The printed formula: a plus sign, so positive definite, but not that inverse."""
    Pv = P @ v
    scale = (1 - decay) / (decay**2 * (1 + decay * (1 - decay) * (v @ Pv)))
    return decay * P + scale * torch.outer(Pv, Pv)


def code_update(P: Tensor, v: Tensor) -> Tensor:
    """The published code: the inverse of `P'^-1 + v v^T`, with P' = 0.95 P + 0.05 I."""
    mixed = CODE_DECAY * P + (1 - CODE_DECAY) * torch.eye(len(P), dtype=P.dtype, device=P.device)
    Pv = mixed @ v
    return mixed - torch.outer(Pv, Pv) / (1 + v @ Pv)


def stabilise(P: Tensor, limit: float, keep: float) -> Tensor:
    """The paper's stabiliser: P unless its largest magnitude exceeds `limit`, else nearer to I."""
    if P.abs().max() <= limit:
        return P
    return keep * P + (1 - keep) * torch.eye(len(P), dtype=P.dtype, device=P.device)


def precondition(P_G: Tensor, dW: Tensor, P_A: Tensor) -> Tensor:
    """P_G dW P_A with the norm of dW.  P_G: [out, out]  dW: [out, in]  P_A: [in, in]"""
    step = P_G @ dW @ P_A
    norm = step.norm()
    return step * (dW.norm() / norm) if norm > 0 else step


@dataclass(frozen=True)
class MkorOptions:
    """What `Mkor` does. Defaults of decay, limit, keep and window are ours."""

    update: Update = "exact"
    decay: float = 0.9  # not read by `code`
    interval: int = 10  # optimizer steps between two updates of the factors
    limit: float = 10.0  # largest magnitude of a factor before the stabiliser; not read by `code`
    keep: float = 0.9  # share of a factor that the stabiliser keeps; not read by `code`
    factor_dtype: torch.dtype = torch.float32  # storage; arithmetic is float32
    switch_below: float | None = None  # MKOR-H: relative loss decrease per window that ends it
    window: int = 50  # losses averaged for that comparison
    skip: tuple[str, ...] = ()  # globs of linears left to `base`: a head's factor is vocabulary^2

    def __post_init__(self) -> None:
        if self.update not in ("exact", "paper", "code"):
            raise ConfigError(f"mkor: update {self.update!r} is not exact, paper or code.")
        if not 0 < self.decay < 1 or not 0 <= self.keep < 1:
            raise ConfigError("mkor: decay must lie between 0 and 1, keep in [0, 1).")
        if self.interval < 1 or self.window < 1 or self.limit <= 1:
            raise ConfigError("mkor: interval and window must be 1 or more, limit more than 1.")


class _Sums:
    """What hooks gather of one linear between two steps, float32."""

    def __init__(self, linear: nn.Linear) -> None:
        device = linear.weight.device
        self.a = torch.zeros(linear.in_features, device=device)  # sum of inputs over tokens
        self.g = torch.zeros(linear.out_features, device=device)  # sum of output gradients
        self.tokens = torch.zeros(1, device=device)


def _bias(linear: nn.Linear) -> Tensor | None:
    return linear.bias  # torch declares it a Tensor, but it may be None


class Mkor(torch.optim.Optimizer):
    """Preconditions the gradients of every `nn.Linear` of `model`, then lets `base` step.

    `base` is any optimizer over the model's parameters; its groups are this optimizer's, so
    schedulers work. Under `torch.distributed` gradients must be averaged over ranks before `step`,
    as DDP does; `step` itself reduces the two vectors of each linear. Resume between steps only:
    sums of an unfinished step are not in the state.
    """

    def __init__(
        self, model: nn.Module, base: torch.optim.Optimizer, options: MkorOptions | None = None
    ) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.options = base, options or MkorOptions()
        self.param_groups = base.param_groups
        everything = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        self.linears = {n: m for n, m in everything.items() if not self._skips(n)}
        if not self.linears:
            found = f"all its {len(everything)} are skipped" if everything else "it has none"
            raise ConfigError(
                f"mkor: no nn.Linear of the model is left ({found}). Use the base optimizer alone."
            )
        self.steps, self.first_order = 0, False
        self.losses: list[float] = []
        self.before: float | None = None  # mean loss of the last full window
        self.factors = {n: self._identities(m) for n, m in self.linears.items()}
        self.sums = {n: _Sums(m) for n, m in self.linears.items()}
        self.handles: list[RemovableHandle] = [
            m.register_forward_hook(self._hook(n)) for n, m in self.linears.items()
        ]

    def _skips(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.options.skip)

    def _identities(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """P_A: [in (+1), in (+1)], the last for the bias; P_G: [out, out]."""
        d_in = linear.in_features + (_bias(linear) is not None)
        kind: Any = {"dtype": self.options.factor_dtype, "device": linear.weight.device}
        return torch.eye(d_in, **kind), torch.eye(linear.out_features, **kind)

    def _due(self) -> bool:
        return not self.first_order and self.steps % self.options.interval == 0

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not (self._due() and output.requires_grad):
                return
            rows = inputs[0].detach().float().flatten(0, -2)
            a, tokens = rows.sum(0), len(rows)

            def backward(gradient: Tensor) -> None:
                sums = self.sums[name]
                sums.a += a
                sums.tokens += tokens
                sums.g += gradient.float().flatten(0, -2).sum(0)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. `closure` is refused: it would run the hooks several times."""
        if closure is not None:
            raise ConfigError("mkor: step takes no closure. Call backward first, then step().")
        if self._due():
            self._update_factors()
        if not self.first_order:
            for name, linear in self.linears.items():
                self._precondition(linear, *self.factors[name])
        self.steps += 1
        self.base.step()

    def _update_factors(self) -> None:
        self._reduce()
        for name, linear in self.linears.items():
            sums = self.sums[name]
            if sums.tokens > 0:
                one = sums.a.new_ones(int(_bias(linear) is not None))
                a, g = torch.cat([sums.a / sums.tokens, one]), sums.g / sums.tokens
                P_A, P_G = self.factors[name]
                self.factors[name] = (self._updated(P_A, a), self._updated(P_G, g))
            self.sums[name] = _Sums(linear)

    def _reduce(self) -> None:
        """Sums over ranks; g is averaged: each rank's loss is a mean over its own tokens."""
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()):
            return
        for sums in self.sums.values():
            packed = torch.cat([sums.a, sums.g / dist.get_world_size(), sums.tokens])
            dist.all_reduce(packed)
            d_in = len(sums.a)
            sums.a, sums.g, sums.tokens = packed[:d_in], packed[d_in:-1], packed[-1:]

    def _updated(self, P: Tensor, v: Tensor) -> Tensor:
        o, wide = self.options, P.float()
        if o.update == "code":
            if wide.abs().max() > CODE_LIMIT:
                wide = torch.eye(len(P), device=P.device)
            new = code_update(wide, v.clamp(-CODE_CLAMP, CODE_CLAMP))
        else:
            rule = exact_update if o.update == "exact" else paper_update
            new = rule(stabilise(wide, o.limit, o.keep), v, o.decay)
        return new.to(o.factor_dtype)

    def _precondition(self, linear: nn.Linear, P_A: Tensor, P_G: Tensor) -> None:
        weight = linear.weight.grad
        if weight is None:
            return
        parameter = _bias(linear)
        bias = None if parameter is None else parameter.grad
        if parameter is not None and bias is None:  # a frozen bias: its column is zero
            bias_column = weight.new_zeros(len(weight), 1)
        else:
            bias_column = weight.new_zeros(len(weight), 0) if bias is None else bias[:, None]
        whole = torch.cat([weight, bias_column], 1).float()
        new = precondition(P_G.float(), whole, P_A.float())
        weight.copy_(new[:, : linear.in_features])
        if bias is not None:
            bias.copy_(new[:, -1])

    def observe(self, loss: float) -> None:
        """MKOR-H: first order for good once a window's mean loss falls by too little.

        Too little is less than `switch_below` of the last window's. Every rank gives the same loss.
        """
        if self.options.switch_below is None or self.first_order:
            return
        self.losses.append(loss)
        if len(self.losses) == self.options.window:
            mean = sum(self.losses) / len(self.losses)
            if self.before is not None:
                self.first_order = self.before - mean < self.options.switch_below * abs(self.before)
            self.before, self.losses = mean, []

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the base optimizer's state included."""
        own: dict[str, Any] = {"steps": self.steps, "first_order": self.first_order}
        own |= {"losses": list(self.losses), "before": self.before, "factors": dict(self.factors)}
        return {"base": self.base.state_dict(), "mkor": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; ConfigError if the model has other linears."""
        own = state_dict["mkor"]
        if own["factors"].keys() != self.factors.keys():
            raise ConfigError("mkor: the state is of a model with other linears.")
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        self.steps, self.first_order = own["steps"], own["first_order"]
        self.losses, self.before = list(own["losses"]), own["before"]
        for name, pair in own["factors"].items():
            P_A, P_G = (new.to(old) for new, old in zip(pair, self.factors[name], strict=True))
            self.factors[name] = (P_A.clone(), P_G.clone())
