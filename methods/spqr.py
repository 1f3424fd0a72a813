"""SpQR: small groups, scales that are codes, outliers apart (Dettmers et al., arXiv:2306.03078).

GPTQ's order and feedback (`methods/solve.py`), with three things of its own:

- Groups are small (16 inputs), so their scales are quantized: 3 bits for a scale and 3 for a zero
  point, on grids that 16 outputs share for the same inputs.
- A weight whose rounding would cost more than theta is an outlier: it is stored by index, exactly,
  and nothing is fed back for it.  theta = outlier_threshold * mean_j(var(W_:j) / U_jj^2), and the
  cost is (w - q)^2 / U_jj^2.
- When the sweep reaches a group, its grid is fitted without the weights that seem to be outliers:
  those without which the others' error, of a grid fitted to them alone, falls by more than theta.

Differs from the published code:
- Inputs are settled in their own order (the code's `act_order` needs an index for each of them).
- The grid of scales is stored as its lowest value and a step, where the code has a step and a zero
  point, which overflows float16 where 16 scales are nearly equal.  Where all 16 are equal it is
  exact; the code's grid is then -1 .. 1.
- The range of a group that is further from 0 than it is wide is extended to 0, so equal weights are
  exact.  The code's zero point, which is no integer and has 3 bits, would be very large.
- An outlier is the difference to what its code stands for: the term is added.
- `most` is a bound for each row, which the code lacks; what exceeds it is rounded.
- Inputs that are never active get 1 on the diagonal before damping, not after it.
"""

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Nested, WithOutliers, with_outliers
from trinity.methods.formats.dense import Dense
from trinity.methods.formats.nested_grid import decoded, nearest
from trinity.methods.options import FloatName, cast
from trinity.methods.solve import FeedbackConfig, factor, panel_width, settle_columns
from trinity.methods.sparsegpt import columns

ROUND_ROOM = 4  # a layer's room for outliers is a multiple: fewer formats, fewer kernels
Fitted = tuple[Tensor, Tensor]


class SpqrConfig(FeedbackConfig):
    """Defaults are those of the code's near-lossless command.

    bits: of a code
    group_size: inputs that share a scale and a zero point; must divide `in`
    second_bits: of the code of a scale, and of a zero point
    rows: outputs that share the grid of those
    outlier_threshold: theta over the mean sensitivity; larger means fewer outliers
    most: share of a row's inputs that may be outliers
    dtype: of the grids of scales, and of outliers
    """

    bits: Literal[2, 3, 4] = 4
    group_size: PositiveInt = 16
    second_bits: Literal[2, 3, 4] = 3
    rows: PositiveInt = 16
    outlier_threshold: NonNegativeFloat = 0.2
    most: float = Field(0.1, ge=0, le=1)
    damping: NonNegativeFloat = 1.0
    dtype: FloatName = "float16"


def min_max(members: Tensor, bits: int) -> Fitted:
    """Scale and zero point from least to largest; to 0 where that is further off than they are.

    members: [size, out]  ->  [out] each
    """
    low, high = members.amin(0), members.amax(0)
    far = (low > high - low) | (high < low - high)
    low, high = torch.where(far, low.clamp(max=0), low), torch.where(far, high.clamp(min=0), high)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, -low / scale


def seeming_outliers(members: Tensor, strength: Tensor, theta: float, bits: int) -> Tensor:
    """Weights without which a grid for the others is better by more than theta.

    members: [size, out]   strength: [size], 1 / U_jj  ->  bool [size, out]
    """
    costs = (members - _on_grid(members, min_max(members, bits), bits)) * strength[:, None]
    before, found = costs.square().sum(0), torch.zeros_like(members, dtype=torch.bool)
    places = torch.arange(len(members), device=members.device)
    for place in range(len(members) if len(members) > 1 else 0):
        others = members[places != place]
        misses = others - _on_grid(others, min_max(others, bits), bits)
        after = (misses * strength[places != place, None]).square().sum(0)
        found[place] = before - after > theta
    return found


def _on_grid(members: Tensor, grid: Fitted, bits: int) -> Tensor:
    scale, zero = grid
    return scale * (nearest(members, scale, zero, bits) - zero)


class Spqr:
    """The grids, codes and outliers of a layer that is settled.  A `Rule` of `methods.solve`."""

    def __init__(self, weights: Tensor, strength: Tensor, config: SpqrConfig) -> None:
        """weights: [in, out]   strength: [in], 1 / U_jj"""
        (d_in, out), device = weights.shape, weights.device
        self.config, self.strength = config, strength
        self.units: tuple[int, ...] = (config.group_size,)
        self.theta = config.outlier_threshold * float(
            (weights.var(1, correction=min(1, out - 1)) * strength.square()).mean()
        )
        groups = d_in // config.group_size
        second = (groups, -(-out // config.rows))
        self.codes = torch.empty(d_in, out, dtype=torch.uint8, device=device)
        self.first = {
            name: torch.empty(groups, out, dtype=torch.uint8, device=device)
            for name in ("scale", "zero")
        }
        stored = cast(weights[:1, :1], config.dtype).dtype
        self.second = {
            f"{name}_{part}": torch.empty(second, dtype=stored, device=device)
            for name in self.first
            for part in ("low", "step")
        }
        self.scale = weights.new_empty(groups, out)
        self.zero = weights.new_empty(groups, out)
        self.beside = torch.zeros_like(weights)  # what outliers add
        self.settled = torch.empty_like(weights)
        self.left = torch.full((out,), int(config.most * d_in), device=device)

    def enter(self, place: int, rows: Tensor, strength: Tensor) -> None:
        """Fit the grid of the group that starts here.  rows: [places from here, out]"""
        size, bits = self.config.group_size, self.config.bits
        group, members = place // size, rows[:size]
        apart = seeming_outliers(members, strength[:size], self.theta, bits)
        there = (~apart).to(members.dtype)
        mean = (members * there).sum(0) / there.sum(0).clamp(min=1)
        scale, zero = min_max(torch.where(apart, mean, members), bits)
        self.scale[group] = self._second_level("scale", group, scale)
        self.zero[group] = self._second_level("zero", group, zero)

    def _second_level(self, name: str, group: int, values: Tensor) -> Tensor:
        """Scales or zero points of a group on a grid for every `rows` outputs.  values: [out]"""
        out, rows, top = len(values), self.config.rows, 2**self.config.second_bits - 1
        padded = torch.cat([values, values[-1:].expand(-out % rows)]).view(-1, rows)
        low = cast(padded.amin(1), self.config.dtype)
        step = cast((padded.amax(1) - low.to(values.dtype)).clamp(min=0) / top, self.config.dtype)
        exact = low.to(values.dtype)[:, None], step.to(values.dtype)[:, None]
        code = nearest(padded - exact[0], exact[1], torch.zeros_like(exact[1]), top.bit_length())
        codes = code.to(torch.uint8).flatten()[:out]
        self.first[name][group] = codes
        self.second[f"{name}_low"][group], self.second[f"{name}_step"][group] = low, step
        found = decoded(codes[:, None], low[:, None], step[:, None], rows)
        return found[:, 0].to(values.dtype)

    def settle(self, place: int, weight: Tensor, error: Tensor) -> None:
        """The nearest code, or the weight itself where that would cost too much."""
        group = place // self.config.group_size
        scale, zero = self.scale[group], self.zero[group]
        code = nearest(weight, scale, zero, self.config.bits)
        value = scale * (code - zero)
        miss = weight - value
        apart = ((miss * self.strength[place]).square() > self.theta) & (self.left > 0)
        self.left -= apart.to(self.left.dtype)
        self.codes[place] = code.to(torch.uint8)
        self.beside[place] = torch.where(apart, miss, 0.0)
        self.settled[place] = torch.where(apart, weight, value)
        error.copy_(torch.where(apart, 0.0, miss))

    def leave(self, place: int, rows: Tensor) -> None:
        """What is stored."""
        rows.copy_(self.settled[place : place + len(rows)])

    def result(self) -> Nested | WithOutliers:
        """The layer."""
        config, first = self.config, {n: of.T.contiguous() for n, of in self.first.items()}
        second = {name: of.T.contiguous() for name, of in self.second.items()}
        base = Nested(
            self.codes.T.contiguous(),
            first["scale"],
            first["zero"],
            second["scale_low"],
            second["scale_step"],
            second["zero_low"],
            second["zero_step"],
            bits=config.bits,
            second_bits=config.second_bits,
            rows=config.rows,
        )
        S = cast(self.beside.T.contiguous(), config.dtype)
        most = int((S != 0).sum(1).max())
        if most == 0:
            return base
        room = min(S.shape[1], -(-most // ROUND_ROOM) * ROUND_ROOM)
        return with_outliers(base, S, room, S.dtype)


class _Spqr:
    name = "spqr"
    paper = "arXiv:2306.03078"
    config = SpqrConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: SpqrConfig) -> str | None:
        if shape[1] % config.group_size:
            return f"group_size {config.group_size} does not divide in = {shape[1]}"
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SpqrConfig
    ) -> CompressedWeight:
        if found := self.problem(current.shape, config):
            raise ConfigError(f"spqr: {found}.")
        if not isinstance(current, Dense):
            msg = (
                f"spqr: an earlier step already made this weight "
                f"{type(current).__name__.lower()}, and its grids need have no zero. Use it first."
            )
            raise ConfigError(msg)
        width = panel_width((config.group_size,))
        of = factor(stats, config, width, act_order=False, method="spqr")
        weights = columns(current.dequantize(), of)
        rule = Spqr(weights, of.strength, config)
        settle_columns(weights, of, rule)
        return rule.result()


SPQR = _Spqr()
