"""Quadratic programmes with box bounds, one a row, by a first-order method.

For each row, minimize 1/2 d Q d^T over lower <= d <= upper.  OPTIMA's published code gives this to
raPDHG (mpax), a primal-dual method for programmes with linear constraints.  Its constraints are a
row of zeros and one inequality that is never active, added to satisfy the interface, so no dual
variable ever moves, and what is left of the method is a projected gradient with momentum and
restarts.  This is one: Beck and Teboulle's steps (FISTA), restarted where they turn back
(O'Donoghue and Candes, arXiv:1204.3982).  The programme, the tolerances and the iteration limit are
the published ones; the iterates are not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHECK_EVERY = 64  # as mpax
POWER_STEPS = 50
STEP_MARGIN = 1.02  # power iteration approaches the largest eigenvalue from below


@dataclass(frozen=True, eq=False)
class BoxSolution:
    """Minimizers [rows, in], whether each met the tolerance [rows], and iterations run."""

    d: Tensor
    optimal: Tensor
    iterations: int


def solve(
    Q: Tensor, lower: Tensor, upper: Tensor, tolerance: float, iterations: int
) -> BoxSolution:
    """Minimize 1/2 d Q d^T in the box, from the point of the box that is nearest to zero.

    Q: [in, in], symmetric, positive semidefinite
    lower, upper: [rows, in], infinite where there is no bound; both or neither are finite
    tolerance: absolute and relative, as in `met`   iterations: limit
    """
    # A unit diagonal, so that one step length suits all variables.
    root = Q.diagonal().sqrt()
    root = torch.where(root > 0, root, 1.0)
    scaled = Q / root / root[:, None]
    low, high = lower * root, upper * root
    step = 1 / (STEP_MARGIN * largest_eigenvalue(scaled))
    x = torch.zeros_like(low).clamp(low, high)
    y, t = x, torch.ones(len(x), 1, dtype=Q.dtype, device=Q.device)
    optimal = torch.zeros(len(x), dtype=torch.bool, device=Q.device)
    for done in range(iterations + 1):
        if done % CHECK_EVERY == 0 or done == iterations:
            optimal = met(x, (x @ scaled), low, high, root, tolerance)
            if bool(optimal.all()) or done == iterations:
                return BoxSolution(x / root, optimal, done)
        ahead = torch.addmm(y, y, scaled, alpha=-step).clamp_(low, high)
        moved = ahead - x
        turned = ((y - ahead) * moved).sum(1, keepdim=True) > 0
        t = torch.where(turned, 1.0, t)
        t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
        y = torch.addcmul(ahead, moved, torch.where(turned, 0.0, (t - 1) / t_next))
        x, t = ahead, t_next
    raise AssertionError("the loop returns")


def met(
    x: Tensor, gradient: Tensor, low: Tensor, high: Tensor, root: Tensor, tolerance: float
) -> Tensor:
    """mpax's test with eps_abs = eps_rel, in the units of the problem as posed.  -> bool [rows]

    Free variables: the largest entry of the gradient against 1 + the largest of Q d.  Objective:
    the distance of primal and dual against 1 + the larger of the two.  The box itself always holds.
    x, gradient, low, high: [rows, in], scaled by `root` (gradient: divided)
    """
    free = torch.isinf(low)
    original = gradient * root
    violation = original.masked_fill(~free, 0).abs().amax(1)
    stationary = violation < tolerance * (1 + original.abs().amax(1))
    quadratic = (x * gradient).sum(1) / 2
    bounds = torch.minimum(low * gradient, high * gradient).masked_fill_(free, 0).sum(1)
    dual = bounds - quadratic
    close = (quadratic - dual).abs() < tolerance * (1 + quadratic.abs().maximum(dual.abs()))
    return stationary & close


def largest_eigenvalue(Q: Tensor) -> float:
    """By power iteration from a fixed start.

    Q: [in, in], symmetric, positive semidefinite
    """
    v = torch.linspace(1, 2, Q.shape[0], dtype=Q.dtype, device=Q.device)
    value = 0.0
    for _ in range(POWER_STEPS):
        v = Q @ (v / v.norm().clamp_min(torch.finfo(Q.dtype).tiny))
        value = float(v.norm())
    return value if value > 0 else 1.0
