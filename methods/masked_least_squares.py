"""Masked least squares: the best kept weights of every row at once, with a proof of how good.

For each row, minimize e(w) = (w - t) H (w - t)^T over the w that are zero where the mask is.  With
K the kept entries, w_K = H_KK^-1 (H t)_K: one system a row, all from one matrix, so conjugate
gradients run on all rows together, and an iteration is one product with H for all of them.

The preconditioner is what makes it fast.  With a unit diagonal, the H of a language model is a few
large eigenvalues over a bulk: H ~ sigma I + V (Lambda - sigma) V^T.  Its restriction to the kept
entries of a row is inverted exactly with one small system a row (Woodbury).  Rows that this does
not finish soon, because H is badly conditioned at its small end, go on with (H^-1)_KK instead:
twice the products an iteration, but hardly more iterations for a bad H than for a good one.

The certificate: (H^-1)_KK - (H_KK)^-1 is positive semidefinite, so with r the masked residual,
r (H^-1)_KK r^T is never less than r (H_KK)^-1 r^T, which is exactly how far e(w) is above its
minimum.  One inverse serves all rows, and a row is done when this bound says so.  H may be singular
(dead inputs, fewer tokens than inputs), so a `ridge` is added before it is inverted; H itself is
used as it is.  The certificate then says: no w' on the same mask has
e(w') < e(w) - gap - ridge * |(w' - w) diag(H)^1/2|^2, so what is better lies far away.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError

RIDGE = 0.5  # times the rounding error of H: what its own inverse can no longer see
SPIKES = 1.5  # times sqrt(in)
SUBSPACE_STEPS = 6
BLOCKS = 16  # of rows: the working memory is that of about one weight matrix
MIN_ROWS = 256  # products of fewer are slower
ROUNDS = 4  # each from the true residual, which the recursion in float32 drifts away from
SPIKED_ITERATIONS = 40  # in the first round; the others use the inverse
FLOOR = 0.1  # times the rounding error of sum t^2 diag(H): no smaller error can be told from zero
CHECK_SHARE = 0.25  # rows are checked, and dropped, when this share of those in work may be done
FIRST_GUESS = 0.3  # of the bound, for the preconditioner's own estimate of the gap
SAFETY = 0.8


@dataclass(frozen=True, eq=False)
class Gram:
    """H scaled to a unit diagonal, its inverse, and its largest eigenvalues.

    scaled: [in, in]  inverse: [in, in], of scaled + ridge * I
    root: [in], sqrt(diag(H)), 1 where an input is dead
    V: [in, k], orthonormal  spikes: [k], sigma / (Lambda - sigma)   sigma: of the bulk
    """

    scaled: Tensor
    inverse: Tensor
    root: Tensor
    V: Tensor
    spikes: Tensor
    sigma: float
    ridge: float


@dataclass(frozen=True, eq=False)
class Solved:
    """Weights and what is known about them, row by row.

    w: [out, in], zero where the mask is   error: [out], e(w)   gap: [out], see the module's text
    converged: bool [out], gap within the tolerance   iterations: of the slowest row
    row_products: products of one row with an [in, in] matrix, over all rows
    """

    w: Tensor
    error: Tensor
    gap: Tensor
    converged: Tensor
    iterations: int
    row_products: int


def prepare(H: Tensor) -> Gram:
    """Scale, invert, find the spikes.

    H: [in, in], float32 or float64, symmetric, positive semidefinite
    """
    root = H.diagonal().sqrt()
    root = torch.where(root > 0, root, 1.0)
    scaled = H / root / root[:, None]
    ridge = RIDGE * torch.finfo(H.dtype).eps * max(float(scaled.norm()), 1.0)
    while ridge <= 1:
        shifted = scaled.clone()
        shifted.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        del shifted
        if not bool(failed):
            inverse = torch.cholesky_inverse(factor)
            del factor
            values, V = largest_eigenpairs(scaled, _spike_count(len(H)))
            rest = float(scaled.diagonal().sum() - values.sum()) / max(len(H) - len(values), 1)
            sigma = max(rest, 10 * ridge)
            real = values > 2 * sigma
            spikes = sigma / (values[real] - sigma)
            return Gram(scaled, inverse, root, V[:, real].contiguous(), spikes, sigma, ridge)
        ridge *= 4
    msg = (
        f"H {list(H.shape)} is not positive semidefinite: with its diagonal doubled it still has "
        f"no Cholesky factor. It is not a sum of squares of inputs."
    )
    raise ConfigError(msg)


def _spike_count(d_in: int) -> int:
    """Setting up the small systems then costs a few products of all rows with H."""
    return int(SPIKES * d_in**0.5) // 4 * 4


def largest_eigenpairs(A: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Approximate largest eigenvalues [count], descending, and vectors [in, count], orthonormal.

    Subspace iteration from a fixed start.  A: [in, in], symmetric, positive semidefinite
    """
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(len(A), count, generator=draw, dtype=A.dtype, device="cpu")
    V = torch.linalg.qr(start.to(A.device))[0]
    for _ in range(SUBSPACE_STEPS):
        V = torch.linalg.qr(A @ V)[0]
    values, mix = torch.linalg.eigh(V.T @ (A @ V))
    return values.flip(0), V @ mix.flip(1)


def block_rows(out: int) -> int:
    """How many of `out` rows are worked on together."""
    return max(MIN_ROWS, -(-out // BLOCKS))


def solve(
    gram: Gram, target: Tensor, mask: Tensor, start: Tensor, tolerance: float, iterations: int
) -> Solved:
    """Minimize e(w) over the mask, row by row, until gap <= tolerance * e(w).

    target: [out, in], in H's type   mask: bool [out, in], True keeps
    start: [out, in], where to begin; overwritten with the result
    tolerance: relative, on the squared error   iterations: limit, in each of the rounds
    """
    out = target.shape[0]
    rows = block_rows(out)
    error, gap = target.new_empty(out), target.new_empty(out)
    converged = torch.zeros(out, dtype=torch.bool, device=target.device)
    slowest = products = 0
    for first in range(0, out, rows):
        block = slice(first, first + rows)
        T, X = target[block] * gram.root, start[block] * gram.root
        part = _solve_block(gram, T, mask[block].to(T.dtype), X, tolerance, iterations)
        torch.div(part.w, gram.root, out=start[block])
        error[block], gap[block], converged[block] = part.error, part.gap, part.converged
        slowest, products = max(slowest, part.iterations), products + part.row_products
    return Solved(start, error, gap, converged, slowest, products)


def _solve_block(
    gram: Gram, T: Tensor, M: Tensor, X: Tensor, tolerance: float, iterations: int
) -> Solved:
    """As `solve`, in scaled coordinates.  T: target  M: mask, ones and zeros  X: start, overwritten

    All are [rows, in], float.
    """
    X.mul_(M)
    floor = FLOOR * torch.finfo(T.dtype).eps * T.square().sum(1)
    error, residual = _state(gram, T, M, X)
    gap = error  # no error is below zero, so the error itself is a bound
    left = (gap > floor).nonzero().flatten()
    done, products = 0, len(T)
    for round_ in range(ROUNDS):
        if left.numel() == 0:
            break
        before = X[left], error, gap
        limit = iterations if round_ else min(SPIKED_ITERATIONS, iterations)
        work = _gathered(gram, left, X, residual, M, error, floor, spiked=round_ == 0)
        done += _conjugate_gradients(gram, work, X, tolerance, limit)
        error, residual = _state(gram, T, M, X)
        gap = _bound(gram, residual).minimum(error)
        products += work.products + 2 * len(T)
        # In float32 the last steps of a singular problem may lead away: those rows go back.
        moved = error < before[1]
        X[left] = torch.where(moved[left, None], X[left], before[0])
        error, gap = torch.where(moved, error, before[1]), torch.where(moved, gap, before[2])
        left = (moved & (gap > floor.maximum(tolerance * error))).nonzero().flatten()
    return Solved(X, error, gap, gap <= floor.maximum(tolerance * error), done, products)


def _state(gram: Gram, T: Tensor, M: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """Error [rows] and masked residual [rows, in], from the weights themselves."""
    away = T - X
    residual = away @ gram.scaled
    error = (residual * away).sum(1).clamp_min(0)
    return error, residual.mul_(M)


def _bound(gram: Gram, R: Tensor) -> Tensor:
    """r (H^-1)_KK r^T of each row; a masked residual needs no mask.  R: [rows, in]  ->  [rows]"""
    return ((R @ gram.inverse) * R).sum(1)


@dataclass(eq=False)
class _Work:
    """The rows that conjugate gradients still work on: indices into the block, and their state.

    X, R, P: [rows, in], weights, masked residual, direction   M: mask
    small: [rows, k, k], inverse of V_K^T V_K + diag(spikes); [rows] if the preconditioner is the
        inverse
    error, floor, energy: [rows], e(w), what is no error, r M^-1 r^T with M the preconditioner
    guess: [rows], energy per gap, as the last check of the row found it
    stuck: bool [rows], no direction is left that H sees
    """

    rows: Tensor
    X: Tensor
    R: Tensor
    M: Tensor
    P: Tensor
    small: Tensor
    error: Tensor
    floor: Tensor
    energy: Tensor
    guess: Tensor
    stuck: Tensor
    products: int = 0

    def keep(self, which: Tensor) -> None:
        """Go on with these rows only.  which: bool [rows]"""
        for name in (
            *("rows", "X", "R", "M", "P", "small"),
            *("error", "floor", "energy", "guess", "stuck"),
        ):
            setattr(self, name, getattr(self, name)[which])


def _gathered(
    gram: Gram,
    rows: Tensor,
    X: Tensor,
    R: Tensor,
    M: Tensor,
    error: Tensor,
    floor: Tensor,
    *,
    spiked: bool,
) -> _Work:
    """Begin to work on some rows of a block.  rows: indices   R: masked residual"""
    X, R, M = X[rows], R[rows], M[rows]
    small = _small_inverses(gram, M) if spiked else R.new_empty(len(R))
    P, products = _preconditioned(gram, small, R, M)
    energy = (R * P).sum(1)
    guess = torch.full_like(energy, FIRST_GUESS if spiked else 1.0)
    stuck = torch.zeros_like(rows, dtype=torch.bool)
    return _Work(rows, X, R, M, P, small, error[rows], floor[rows], energy, guess, stuck, products)


def _small_inverses(gram: Gram, M: Tensor) -> Tensor:
    """Inverse of V_K^T V_K + diag(spikes) of each row.  M: [rows, in]  ->  [rows, k, k]"""
    V, count = gram.V, gram.V.shape[1]
    small = V.new_empty(len(M), count, count)
    for j in range(count):  # symmetric, so only from the diagonal on
        part = M @ (V[:, j:] * V[:, j, None])
        small[:, j, j:], small[:, j:, j] = part, part
    small.diagonal(dim1=1, dim2=2).add_(gram.spikes)
    inverses: Tensor = torch.linalg.inv(small)
    return inverses


def _preconditioned(gram: Gram, small: Tensor, R: Tensor, M: Tensor) -> tuple[Tensor, int]:
    """R times (sigma I + V (Lambda - sigma) V^T)_KK^-1, or (H^-1)_KK.  -> it, large products

    R: [rows, in], masked
    """
    if small.ndim == 1:
        return (R @ gram.inverse).mul_(M), len(R)
    seen = torch.bmm((R @ gram.V)[:, None], small)[:, 0]
    return torch.addmm(R, seen, gram.V.T, alpha=-1).mul_(M).div_(gram.sigma), 0


def _conjugate_gradients(
    gram: Gram, work: _Work, X: Tensor, tolerance: float, iterations: int
) -> int:
    """Run until no row in work has a reason to go on; X receives its rows.  -> iterations"""
    for step in range(iterations):
        _drop_finished(gram, work, X, tolerance)
        if len(work.rows) == 0:
            return step
        Q = (work.P @ gram.scaled).mul_(work.M)
        curvature = (work.P * Q).sum(1)
        # A direction that H sees no more than the ridge: what is left to gain is rounding.
        work.stuck = curvature <= gram.ridge * work.P.square().sum(1)
        alpha = torch.where(work.stuck, 0.0, work.energy / curvature)
        work.X.addcmul_(work.P, alpha[:, None])
        work.R.addcmul_(Q, alpha[:, None], value=-1)
        work.error = work.error - alpha * work.energy
        Z, products = _preconditioned(gram, work.small, work.R, work.M)
        work.products += len(Q) + products
        energy = (work.R * Z).sum(1)
        beta = torch.where(work.energy > 0, energy / work.energy, 0.0)
        work.P.mul_(beta[:, None]).add_(Z)
        work.energy = energy
    X[work.rows] = work.X
    return iterations


def _drop_finished(gram: Gram, work: _Work, X: Tensor, tolerance: float) -> None:
    """Check the rows that look done, once they are many enough, and write the done ones to X."""
    limit = work.floor.maximum(tolerance * work.error)
    given_up = work.stuck | (work.error <= work.floor)
    likely = given_up | (work.energy <= SAFETY * work.guess * limit)
    if int(likely.sum()) < CHECK_SHARE * len(likely):
        return
    bound = _bound(gram, work.R[likely])
    work.products += len(bound)
    done = given_up.clone()
    done[likely] |= bound <= SAFETY * limit[likely]
    work.guess[likely] = work.energy[likely] / bound.clamp_min(torch.finfo(bound.dtype).tiny)
    X[work.rows[done]] = work.X[done]
    work.keep(~done)
