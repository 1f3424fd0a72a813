"""BEAM: tune a compressed block until it gives what the original block gives (Paramathic/beam).

    min  mean_j (1 / size) || block(W'; X_j) - Y_j ||^2,     Y_j = block(W; X_j)

over all that the compressed weights W' of one transformer block are stored as, one sequence a step,
with Adam.  Differences from the published code: methods/beam.py.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    Adapted,
    CompressedWeight,
    Dense,
    Transposed,
    VectorCoded,
    WithOutliers,
)
from trinity.methods.formats.vector_codebook import decoded as sum_of_vectors
from trinity.methods.training.straight_through import Stored, decoded, like, straight_through

Zeros = Literal["all", "pattern"]
Keep = Literal["best", "last"]
Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Snapshot = list[Tensor]
LAST_SHARE = 1e-2  # of the learning rate, at the last step


class _DivergedError(Exception):
    """Parameters that no format can hold: not finite, or too large for their 16 bits."""


class Tunable:
    """One compressed weight as float parameters: its own, or base, B and A of an adapted one.

    Of vectors from tables the parameters are tables and scales, and codes stay (AQLM, phase 3).
    """

    def __init__(self, weight: CompressedWeight, zeros: Zeros) -> None:
        """Parameters that start at what is stored.

        zeros: which of the parameters that are 0 stay so: `all`, or `pattern`, those under a mask
            and those of a dense weight (pruned, but stored dense)
        """
        self.weight = weight
        self.parts = _parts(weight)
        starts = [decoded(part) for part in self.parts]
        own = len(_tables(weight))  # no zero of a table is one of the weight's
        self.free = [
            start != 0 if at >= own and (zeros == "all" or isinstance(part, Dense)) else None
            for at, (part, start) in enumerate(zip(self.parts, starts, strict=True))
        ]
        self.parameters = [start.requires_grad_() for start in starts]

    def effective(self) -> Tensor:
        """The weight [out, in] that would be stored, differentiable in the parameters."""
        pairs = zip(self.parts, self.parameters, strict=True)
        try:
            made = [straight_through(part, x) for part, x in pairs]
            if _tables(self.weight):
                self.stored()  # refuses scales that are not positive
        except ConfigError as error:  # of a format that is given such numbers
            raise _DivergedError from error
        base = self.weight.base if isinstance(self.weight, Adapted) else self.weight
        if isinstance(base, VectorCoded):
            made = [sum_of_vectors(base.codes, made[0], made[1]), *made[2:]]
        return made[0] + made[1] @ made[2] if len(made) > 1 else made[0]

    def stored(self) -> CompressedWeight:
        """The weight in the format it came in."""
        made = [like(p, x.detach()) for p, x in zip(self.parts, self.parameters, strict=True)]
        before = self.weight.base if isinstance(self.weight, Adapted) else self.weight
        if isinstance(before, VectorCoded):
            tables, scale, *made = made
            assert isinstance(tables, Tensor)
            assert isinstance(scale, Tensor)
            made = [replace(before, codebooks=tables, scale=scale), *made]
        base = made[0]
        assert not isinstance(base, (Tensor, Transposed))
        if len(made) == 1:
            return base
        assert not isinstance(made[1], (Dense, WithOutliers))
        assert not isinstance(made[2], (Dense, WithOutliers))
        return Adapted(base, made[1], made[2])

    def hold_zeros(self) -> None:
        """Put back to 0 what is not free."""
        for parameter, free in zip(self.parameters, self.free, strict=True):
            if free is not None:
                parameter.mul_(free)


def _parts(weight: CompressedWeight) -> list[Stored]:
    base = weight.base if isinstance(weight, Adapted) else weight
    own: list[Stored] = [*_tables(weight)] or [base]
    return [*own, weight.B, weight.A] if isinstance(weight, Adapted) else own


def _tables(weight: CompressedWeight) -> list[Tensor]:
    """What the entries of a weight of vectors are made of; none of any other weight."""
    base = weight.base if isinstance(weight, Adapted) else weight
    return [base.codebooks, base.scale] if isinstance(base, VectorCoded) else []


class TunedBlock:
    """A block in training.

    inputs, targets: [seq, hidden] of each sequence
    forward: (weight [out, in] of each linear, one input) -> the block's output, differentiable
    """

    def __init__(
        self,
        current: Mapping[str, CompressedWeight],
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        forward: Forward,
        zeros: Zeros,
    ) -> None:
        self.linears = {name: Tunable(weight, zeros) for name, weight in current.items()}
        self.inputs, self.targets, self.forward = inputs, targets, forward

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained, float32."""
        return [p for linear in self.linears.values() for p in linear.parameters]

    def snapshot(self) -> Snapshot:
        """The parameters as they are now."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Put parameters back to what they were."""
        for parameter, before in zip(self.parameters, snapshot, strict=True):
            parameter.copy_(before)

    def effective(self) -> dict[str, Tensor]:
        """The weights that would be stored now."""
        return {name: linear.effective() for name, linear in self.linears.items()}

    def loss(self, weights: Mapping[str, Tensor], index: int) -> Tensor:
        """Mean squared error of one sequence, in float32."""
        found = self.forward(weights, self.inputs[index])
        return (found.float() - self.targets[index].float()).square().mean()

    @torch.no_grad()
    def error(self) -> float:
        """Mean loss over all sequences of what would be stored now; infinite if nothing can be."""
        try:
            weights = self.effective()
        except _DivergedError:
            return math.inf
        return sum(float(self.loss(weights, i)) for i in range(len(self.inputs))) / len(self.inputs)

    def train(self, rate: float, indices: Iterable[int], steps: int) -> Iterator[float]:
        """Take steps of Adam, one a sequence; gives the loss before each.

        Ends early, after an infinite loss, where a loss or a parameter overflows.
        rate: falls linearly to a hundredth of itself over `steps`
        """
        optimizer = torch.optim.Adam(self.parameters, lr=rate)
        for step, index in enumerate(indices):
            optimizer.param_groups[0]["lr"] = rate * (1 - (1 - LAST_SHARE) * step / steps)
            try:
                loss = self.loss(self.effective(), index)
            except _DivergedError:
                yield math.inf
                return
            if not bool(torch.isfinite(loss)):
                yield math.inf
                return
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for linear in self.linears.values():
                    linear.hold_zeros()
            yield float(loss.detach())


@dataclass(frozen=True)
class Outcome:
    """How the tuning of a block went.

    before, after: mean squared error over all sequences   epoch: whose weights were kept, 0: none's
    """

    rate: float
    before: float
    after: float
    epoch: int


def best_rate(block: TunedBlock, rates: Sequence[float], trial: int, steps: int) -> float:
    """The learning rate with the lowest mean loss over the second half of a trial.

    trial: first sequences, one step each   steps: of the training to come, whose schedule is used
    """
    if len(rates) == 1:
        return rates[0]
    start, found = block.snapshot(), []
    count = min(trial, len(block.inputs))
    for rate in rates:
        losses = list(block.train(rate, range(count), steps))
        block.restore(start)
        late = losses[count // 2 :]
        found.append(sum(late) / len(late) if losses[-1] < math.inf else math.inf)
    return rates[found.index(min(found))]


@torch.enable_grad()
def tune(block: TunedBlock, rates: Sequence[float], trial: int, epochs: int, keep: Keep) -> Outcome:
    """Train the block; it holds the kept weights afterwards.

    keep: `best` of the start and the end of every epoch, so that the error never grows; or `last`,
        as in the published code
    """
    start, before = block.snapshot(), block.error()
    if not math.isfinite(before):
        msg = "the compressed block's output is not finite. Compress it otherwise, or in float32."
        raise ConfigError(msg)
    count = len(block.inputs)
    steps = epochs * count
    rate = best_rate(block, rates, trial, steps)
    best, kept, after, epoch = start, before, before, 0
    order = (index for _ in range(epochs) for index in range(count))
    for step, loss in enumerate(block.train(rate, order, steps), 1):
        if math.isinf(loss):
            after = loss
        elif step % count == 0:
            after = block.error()
            if after < kept:
                best, kept, epoch = block.snapshot(), after, step // count
    if keep == "best":
        block.restore(best)
        return Outcome(rate, before, kept, epoch)
    if not math.isfinite(after):
        msg = f"training diverged at rate {rate:g}. Use smaller learning_rates, or `keep: best`."
        raise ConfigError(msg)
    return Outcome(rate, before, after, epochs)
