"""Error feedback through the Hessian: what SparseGPT and GPTQ share.

Both settle the inputs of a layer one after the other.  Settling input j replaces the column w_j by
what will be stored, and moves the columns after it so that the layer's output changes least:
W_l -= (w_j - w^_j) U_jl / U_jj for l > j, where (H + damping)^-1 = U^T U and U is upper triangular
(GPTQ, arXiv:2210.17323, eq. 3; SparseGPT, arXiv:2301.00774, section 3).

The same numbers, arranged so that nearly all the work is large products:

- Not U but V = U^-1, H + damping = V V^T, is computed: one Cholesky factorization of H with its
  inputs in reverse, n^3/3 operations.  The published order (factor, invert, factor again) takes
  4 n^3/3, and squares no condition number less.
- With D = W - W^ of everything settled, the columns of a panel p are W_p + D V_:p U_pp when the
  sweep reaches it, U_pp = V_pp^-1.  U_pp^T V_:p^T is part of the factor, so a panel takes one
  product with all the errors before it, and only U_pp of the inverse is ever needed.
- Inside a panel, column j is moved by one product with each run of columns that a binary counter
  closes at j: log2(panel) products, not one for each column before it.
- Weights are [in, out] here, so that a column is contiguous.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig
from trinity.methods.errors import ConfigError

PANEL = 128
Precision = Literal["float32", "float64"]
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class FeedbackConfig(MethodConfig):
    """Options of every method with error feedback; defaults are the papers'.

    damping: fraction of mean(diag(H)) added to the diagonal
    block_size: columns that the papers treat as one block: unstructured masks are chosen, and
        `group_fit: reference` sees weights, block by block; otherwise the result does not depend
        on it
    precision: in which the factor and the feedback are computed
    """

    damping: NonNegativeFloat = 0.01
    block_size: PositiveInt = 128
    precision: Precision = "float32"


@dataclass(frozen=True, eq=False)
class Factor:
    """H + damping = V V^T in panels of `width` inputs, in the order of settling.

    order: int64 [in], the input at each place, or None if they stand as they are
    strength: [in], V_jj = 1 / U_jj: an error at input j costs its square times strength^2
    before: [in, in], in rows p and columns before p: U_pp^T V_:p^T
    within: one [size, size] a panel, lower triangular: U_jl / U_jj at row l, column j
    dead: bool [in], in the layer's order: inputs that are always zero
    """

    width: int
    order: Tensor | None
    strength: Tensor
    before: Tensor
    within: tuple[Tensor, ...]
    dead: Tensor


class Rule(Protocol):
    """What is stored in place of a weight, decided column by column.

    units: descending, each a divisor of the one before: `enter` is called at multiples of the last
    """

    units: tuple[int, ...]

    def enter(self, place: int, rows: Tensor, strength: Tensor) -> None:
        """Everything before `place` is settled.

        rows: [places from here to the panel's end, out]; the first `unit` of them are up to date
            for every unit that divides `place`
        strength: [the same places]
        """
        ...

    def settle(self, place: int, weight: Tensor, error: Tensor) -> None:
        """Choose what is stored for a column and write the rest to `error`; both [out]."""
        ...

    def leave(self, place: int, rows: Tensor) -> None:
        """Turn a settled panel, in place, into what is stored.  rows: [size, out]"""
        ...


def hessian(stats: LayerStats, method: str) -> Tensor:
    """H: [in, in], or ConfigError if nothing was collected."""
    if stats.H is None:
        msg = f"{method}: needs input statistics (H); the recipe has no calibration data."
        raise ConfigError(msg)
    return stats.H


def panel_width(units: tuple[int, ...]) -> int:
    """Inputs of a panel: about `PANEL`, a multiple of the largest unit."""
    return units[0] * max(1, PANEL // units[0])


def factor(
    stats: LayerStats, config: FeedbackConfig, width: int, *, act_order: bool, method: str
) -> Factor:
    """The factor of a layer's H, made once for all layers that share its statistics.

    act_order: settle inputs by falling diag(H), before damping
    """
    key = ("factor", config.damping, config.precision, width, act_order)
    return stats.shared(
        key, lambda: _factor(hessian(stats, method), stats.tokens, config, width, act_order, method)
    )


def _factor(
    H: Tensor, tokens: int, config: FeedbackConfig, width: int, act_order: bool, method: str
) -> Factor:
    size = H.shape[0]
    dead = H.diagonal() == 0
    order = H.diagonal().argsort(descending=True, stable=True) if act_order else None
    with exact_products():
        V = turned_factor(H, order, config)
    if V is None:
        msg = (
            f"{method}: H [{size}, {size}] is not positive definite in {config.precision} at "
            f"damping {config.damping}. Use more calibration tokens (had {tokens}), or raise "
            f"{method}.damping."
        )
        raise ConfigError(msg)
    strength = V.diagonal().clone()
    within = []
    with exact_products():
        for start in range(0, size, width):
            stop = min(start + width, size)
            own = V[start:stop, start:stop]
            eye = torch.eye(stop - start, dtype=V.dtype, device=V.device)
            U = torch.linalg.solve_triangular(own.T, eye, upper=True)
            if start:
                V[start:stop, :start] = U.T @ V[start:stop, :start]
            within.append((U * strength[start:stop, None]).T.contiguous())
    return Factor(width, order, strength, V, tuple(within), dead)


def turned_factor(H: Tensor, order: Tensor | None, config: FeedbackConfig) -> Tensor | None:
    """V^T: [in, in], lower triangular, of the damped H in a given order; None if there is none."""
    # H may be the largest thing in memory: copied once, backwards.
    backwards = H.flip(0, 1) if order is None else H[order.flip(0)[:, None], order.flip(0)]
    damped = backwards.to(_DTYPES[config.precision])
    del backwards
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal.add_(config.damping * diagonal.mean())
    R, failed = torch.linalg.cholesky_ex(damped, upper=True)
    del damped, diagonal
    if bool(failed) or not bool(torch.isfinite(R.diagonal()).all()):
        return None
    turned: Tensor = R.flip(0, 1)
    return turned


def settle_columns(weights: Tensor, found: Factor, rule: Rule, pull: Tensor | None = None) -> None:
    """Settle every column of a layer in turn, in place.

    weights: [in, out] in the order of the factor, of its precision; becomes what is stored
    pull: [in, in], strictly lower triangular: what a column's weight, before it is rounded, adds to
        the columns after it (GPTAQ's P^T); to a panel it is a change of the weight that was given
    """
    error = weights.clone()  # of settled columns; the given weight of the others
    moved = None if pull is None else torch.zeros_like(weights)  # settled columns, not rounded
    buffer = torch.empty(
        min(found.width, len(weights)), weights.shape[1], dtype=weights.dtype, device=weights.device
    )
    with exact_products():
        for index, within in enumerate(found.within):
            start = index * found.width
            stop = start + len(within)
            panel, own = weights[start:stop], None
            if pull is not None and moved is not None:
                own = pull[start:stop, start:stop]
                shift = pull[start:stop, :start] @ moved[:start]
                panel.add_(shift)
                error[start:stop].add_(shift)
            if start:
                panel.addmm_(found.before[start:stop, :start], error[:start])
            _settle_panel(start, panel, (within, own), found.strength[start:stop], buffer, rule)
            if own is not None and moved is not None:
                moved[start:stop] = panel
                error[start:stop].addmm_(own, panel)
            rule.leave(start, panel)
            error[start:stop].sub_(panel)


def _settle_panel(
    start: int,
    panel: Tensor,
    moves: tuple[Tensor, Tensor | None],
    strength: Tensor,
    errors: Tensor,
    rule: Rule,
) -> None:
    """moves: what errors take from later columns, and what weights add to them (or None)"""
    (within, own), size, step = moves, len(panel), rule.units[-1]
    for column in range(size):
        if column % step == 0:
            rule.enter(start + column, panel[column:], strength[column:])
        rule.settle(start + column, panel[column], errors[column])
        done = column + 1
        if done < size:
            first, last = _closed_run(done, rule.units, size)
            panel[done:last].addmm_(within[done:last, first:done], errors[first:done], alpha=-1)
            if own is not None:
                panel[done:last].addmm_(own[done:last, first:done], panel[first:done])


def _closed_run(done: int, units: tuple[int, ...], size: int) -> tuple[int, int]:
    """The errors of columns first..done-1 now move columns done..last-1: one step of a counter.

    Over all steps every column gets every error before it exactly once, and the columns of a unit
    have got all of them when the first of the unit is reached.
    """
    base, last = 0, size
    for unit in (*units, 1):
        count, rest = divmod(done - base, unit)
        if rest == 0:
            run = (count & -count) * unit
            return done - run, min(done + run, last)
        base += count * unit
        last = min(last, base + unit)
    raise AssertionError(units)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 in float32: no TF32 on a GPU and no bfloat16 on a CPU meanwhile."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
