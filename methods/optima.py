"""OPTIMA: the best kept weights for a mask that is given (arXiv:2512.13886).

After any pruner, each output row is a quadratic programme: change the kept weights so that the
layer's output error is least, with the pruned ones at zero.  All rows share one H, so the programme
is masked least squares.

- `exact` (default): solved by conjugate gradients for all rows at once (`masked_least_squares`), to
  a bound on how far each row is above its minimum, which the layer's report holds.
- `reference`: as published (paper and code). Pruned weights may move in a box of width 1e-4 and are
  set to zero afterwards; a first-order solver stops at absolute and relative tolerance 1e-2; the
  change is rounded to bfloat16; the layer keeps the plain mask if fewer than 95% of some batch's
  rows met the tolerance.

Two options are not the paper's; they are against few calibration tokens.  `damping` adds to H what
other methods add, which pulls every kept weight towards its target.  `decides: held-out` solves on
three quarters of the calibration sequences, and the others decide whether a row takes the result.

Both differ from the paper in what they may do at worst: `exact` keeps a row as it was, `reference`
the layer, where the new weights, rounded as they are stored, do not have a smaller error than both
what earlier steps left and the mask alone.  The target is the original weight, less the adapter if
there is one.  A quantized weight is rounded to the grid that it has; the paper leaves that open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from trinity.methods import box_qp, masked_least_squares
from trinity.methods.contract import LayerStats, MethodConfig, Reported, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, CompressedWeight, Dense, Quantized, Sparse, Values

ITERATIONS = {"exact": 300, "reference": 100_000}
BOX = 1e-4
LEAST_OPTIMAL = 0.95
BATCH_ENTRIES = 128 * 12 * 2**20  # the published code's rows in a batch, times in^2


class OptimaConfig(MethodConfig):
    """Defaults are the paper's, with another meaning of the tolerance in `exact`.

    variant: see the module's text
    tolerance: exact: bound on (error - least error) / error of each row, errors squared;
        reference: the solver's absolute and relative tolerance
    damping: fraction of mean(diag(H)) added to the diagonal of what is solved
    decides: the tokens whose error says whether a row is better: those that were solved on, or
        every fourth sequence, which then is not solved on
    """

    variant: Literal["exact", "reference"] = "exact"
    tolerance: PositiveFloat = Field(default=1e-2, lt=1)
    damping: NonNegativeFloat = 0.0
    decides: Literal["calibration", "held-out"] = "calibration"

    @property
    def also_needs(self) -> Statistic:
        """The held-out part, where it decides."""
        return Statistic.HELD_OUT if self.decides == "held-out" else Statistic.NOTHING


@dataclass(frozen=True, eq=False)
class Problem:
    """What is solved, and what judges: both [in, in], and one tensor where nothing differs.

    solved: H of what is solved on, damped   judge: H of what decides, as it is
    """

    solved: Tensor
    judge: Tensor

    @classmethod
    def of(cls, stats: LayerStats, config: OptimaConfig) -> "Problem":
        """ConfigError where nothing is left to solve on, or to decide."""
        if stats.H is None:
            msg = "optima: needs the inputs' second moments; the recipe has no calibration data."
            raise ConfigError(msg)
        solved = judge = stats.H
        if config.decides == "held-out":
            left = stats.tokens - stats.tokens_held_out
            if stats.H_held_out is None or left < 1:
                msg = (
                    f"optima: `decides: held-out` solves on three of four calibration sequences, "
                    f"and there are too few ({stats.tokens} tokens, {stats.tokens_held_out} of "
                    f"them held out). Use more calibration.samples, or `decides: calibration`."
                )
                raise ConfigError(msg)
            judge = stats.H_held_out
            solved = stats.H * (stats.tokens / left)
            solved.sub_(judge, alpha=stats.tokens_held_out / left)
        if config.damping:
            solved = solved.clone() if solved is stats.H else solved
            solved.diagonal().add_(config.damping * solved.diagonal().mean())
        return cls(solved, judge)


@dataclass(frozen=True, eq=False)
class Attempt:
    """New weights [out, in] and what the solver says of them, for the report.

    errors: squared errors of the layer   facts: everything else
    """

    w: Tensor
    errors: Mapping[str, float]
    facts: Mapping[str, float | int]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights as they would be stored, and the error of each row: [out]."""

    values: Values
    error: Tensor

    @property
    def total(self) -> float:
        """The layer's squared error."""
        return float(self.error.double().sum())


def row_errors(delta: Tensor, H: Tensor) -> Tensor:
    """delta H delta^T of each row, in blocks of rows.  delta: [out, in]  H: [in, in]  ->  [out]

    Of a row without error, rounding may leave less than zero: that is none.
    """
    rows = masked_least_squares.block_rows(len(delta))
    errors = [((part @ H) * part).sum(1) for part in torch.split(delta, rows)]
    return torch.cat(errors).clamp_min(0)


def candidate(values: Values, mask: Tensor, target: Tensor, H: Tensor) -> Candidate:
    """Measure weights under a mask.  mask: bool [out, in]  target: [out, in]  H: [in, in]"""
    return Candidate(values, row_errors(values.dequantize().mul_(mask).sub_(target), H))


def exact(target: Tensor, mask: Tensor, start: Tensor, H: Tensor, tolerance: float) -> Attempt:
    """The minimizer of every row, to the tolerance.

    target, mask: [out, in]  start: [out, in], overwritten  H: [in, in]
    """
    gram = masked_least_squares.prepare(H)
    limit = ITERATIONS["exact"]
    solved = masked_least_squares.solve(gram, target, mask, start, tolerance, limit)
    least = float((solved.error - solved.gap).double().sum())
    return Attempt(
        solved.w,
        {"error_at_least": max(least, 0.0)},
        {
            "gap": float((solved.gap / solved.error.clamp_min(1e-30)).max()),
            "ridge": gram.ridge,
            "rows_not_converged": int((~solved.converged).sum()),
            "iterations": solved.iterations,
            "row_products": solved.row_products,
        },
    )


def reference(target: Tensor, mask: Tensor, H: Tensor, tolerance: float) -> Attempt:
    """The published solver's answer, or the plain mask if it did not converge.

    target, mask: [out, in]  H: [in, in], twice the published Q, a mean over tokens
    """
    out, d_in = target.shape
    rows = min(out, max(1, BATCH_ENTRIES // d_in**2))
    inf, parts = torch.inf, []
    iterations = not_converged = 0
    for w, kept in zip(torch.split(target, rows), torch.split(mask, rows), strict=True):
        lower, upper = torch.where(kept, -inf, -w), torch.where(kept, inf, BOX - w)
        found = box_qp.solve(H / 2, lower, upper, tolerance, ITERATIONS["reference"])
        iterations = max(iterations, found.iterations)
        not_converged += int((~found.optimal).sum())
        if int(found.optimal.sum()) < LEAST_OPTIMAL * len(w):
            parts = [target.bfloat16()]  # the plain mask, once it is applied below
            break
        parts.append(w.bfloat16() + found.d.bfloat16())
    facts = {"rows_not_converged": not_converged, "iterations": iterations}
    return Attempt(torch.cat(parts).float().mul_(mask), {}, facts)


def masked_target(current: Sparse, target: Tensor, before: Candidate, H: Tensor) -> Candidate:
    """The mask alone.  before: `current`, measured; after a pruner without update it is the same"""
    plain = current.values.rounded(target)
    same = plain.dequantize() == current.values.dequantize()
    if bool((same | ~current.mask).all()):
        return before
    return candidate(plain, current.mask, target, H)


def better_of(new: Candidate, old: Candidate, variant: str) -> tuple[Candidate, int]:
    """Row by row, or for `reference` as a whole, the one with less error.  -> it, rows of `old`"""
    if new is old:
        return old, len(old.error)
    wins = new.error < old.error
    if variant == "reference":
        wins = torch.full_like(wins, new.total < old.total)
    error = torch.where(wins, new.error, old.error)
    values: Values
    if isinstance(new.values, Dense) and isinstance(old.values, Dense):
        values = Dense(torch.where(wins[:, None], new.values.values, old.values.values))
    elif isinstance(new.values, Quantized) and isinstance(old.values, Quantized):
        codes = torch.where(wins[:, None], new.values.codes, old.values.codes)
        grid = old.values
        values = Quantized(codes, grid.scale, grid.zero_point, grid.bits)
    else:
        both = torch.where(wins[:, None], new.values.dequantize(), old.values.dequantize())
        values = old.values.rounded(both)
    return Candidate(values, error), int((~wins).sum())


def improved(
    W: Tensor, target: Tensor, current: Sparse, problem: Problem, config: OptimaConfig
) -> tuple[Sparse, dict[str, float | int | str]]:
    """Solve for the kept weights, and take them where they are better.  -> it, the report

    W, target: [out, in], what errors are relative to, and what the weights should be
    """
    mask, variant, H = current.mask, config.variant, problem.judge
    before = candidate(current.values, mask, target, H)
    plain = masked_target(current, target, before, H)
    start, _ = better_of(plain, before, variant)
    totals = {"error_before": before.total, "error_masked": plain.total}
    del before, plain
    if variant == "reference":
        attempt = reference(target, mask, problem.solved, config.tolerance)
    else:
        first = start.values.dequantize()
        attempt = exact(target, mask, first, problem.solved, config.tolerance)
    new = candidate(start.values.rounded(attempt.w), mask, target, H)
    final, kept = better_of(new, start, variant)
    totals |= {"error_after": final.total}
    if problem.solved is H:  # else the least error is another problem's
        totals |= attempt.errors
    norm = max(float(row_errors(W, H).double().sum()), 1e-30)
    return Sparse(final.values, mask, current.pattern), {
        "variant": variant,
        **{name: (total / norm) ** 0.5 for name, total in totals.items()},
        "rows": len(W),
        "rows_kept": kept,
        **attempt.facts,
    }


def compress(
    W: Tensor, current: CompressedWeight, problem: Problem, config: OptimaConfig
) -> CompressedWeight | Reported:
    """Better kept weights under the mask of `current`.  W: [out, in]"""
    if isinstance(current, Dense):
        # Nothing is pruned: the best weights are those that are there.
        return current
    if isinstance(current, Sparse):
        return Reported(*improved(W, W, current, problem, config))
    if isinstance(current, Adapted) and isinstance(current.base, Sparse):
        # The adapter as it is stored, whatever form its factors have.
        target = W - (current.dequantize() - current.base.dequantize())
        base, details = improved(W, target, current.base, problem, config)
        return Reported(replace(current, base=base), details)
    msg = (
        "optima: the weight has no mask. It solves for the weights that a pruner kept: put a step "
        "such as wanda before it."
    )
    raise ConfigError(msg)


class _Optima:
    name = "optima"
    paper = "arXiv:2512.13886"
    config = OptimaConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: OptimaConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: OptimaConfig
    ) -> CompressedWeight | Reported:
        return compress(W.float(), current, Problem.of(stats, config), config)


OPTIMA = _Optima()
