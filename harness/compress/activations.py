"""Input statistics of linear layers, collected by hooks that are gone afterwards."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.tensors import clipped

PRODUCT_ROWS = 2048  # of H, computed at once
HELD_OUT_EVERY = 4  # sequences, the first of them
OF_CLIPPED = Statistic.X_NORM_CLIPPED | Statistic.X_MAX_ABS_CLIPPED | Statistic.X_MEAN_CLIPPED


class EnoughError(Exception):
    """Ends a forward that has reached every linear whose input is wanted."""


class Accumulator:
    """Sums over the inputs of one linear (or of several that share an input)."""

    def __init__(self, name: str, needs: Statistic, moved: Tensor | None = None) -> None:
        """name: of the layer, for errors   moved: [in], what transforms divided the inputs by

        needs: beyond the Hessian, which layer errors use anyway
        """
        self.name, self.needs = name, needs
        self.sequences = self.tokens = self.tokens_held_out = 0
        self.squares: Tensor | None = None
        self.magnitudes: Tensor | None = None
        self.H: Tensor | None = None
        self.H_held_out: Tensor | None = None
        self.H_drift: Tensor | None = None
        self.largest: Tensor | None = None
        self.inputs: list[Tensor] = []
        self.clipped = ClippedInputs(name, needs, moved)
        self.takes_dense = False
        self._dense: Tensor | None = None  # what the dense model gave for the input to come

    def add(self, x: Tensor) -> None:
        """Take in the input of one call.  x: [sequences, seq, in]"""
        inputs = x.reshape(-1, x.shape[-1]).float()
        if self.takes_dense:
            self._dense = inputs
            return
        if not bool(torch.isfinite(inputs).all()):
            msg = (
                f"{self.name}: its input holds NaN or infinity during calibration. The model "
                f"overflows in this type, or a block before it was damaged by compression: try "
                f"model.dtype float32."
            )
            raise ConfigError(msg)
        sequences = inputs.reshape(x.shape[0] if x.ndim > 2 else 1, -1, x.shape[-1])
        if self.needs & Statistic.HELD_OUT:
            self._hold_out(sequences)
        if self.needs & OF_CLIPPED:
            for sequence in sequences:
                self.clipped.add(sequence)
        self.sequences += x.shape[0] if x.ndim > 2 else 1
        self.tokens += inputs.shape[0]
        # float64: sums of squares over 10^5 tokens lose digits in float32, and vectors are cheap.
        squares = inputs.double().square().sum(0)
        magnitudes = inputs.abs().sum(0, dtype=torch.float64)
        if self.H is None or self.squares is None or self.magnitudes is None:
            self.squares, self.magnitudes, self.H = squares, magnitudes, inputs.T @ inputs
        else:
            self.squares += squares
            self.magnitudes += magnitudes
            for rows in range(0, len(self.H), PRODUCT_ROWS):  # H is large: no second one beside it
                part = slice(rows, rows + PRODUCT_ROWS)
                self.H[part] += inputs.T[part] @ inputs
        if self.needs & Statistic.DRIFT:
            self._drift(inputs)
        if self.needs & Statistic.X_MAX_ABS:
            found = inputs.abs().amax(0)
            self.largest = found if self.largest is None else torch.maximum(self.largest, found)
        if self.needs & Statistic.ACTIVATIONS:
            self.inputs.append(inputs)

    def _drift(self, inputs: Tensor) -> None:
        """inputs: [tokens, in], of the tokens that the dense model was run on just before"""
        assert self._dense is not None, f"{self.name}: the dense model was not run first"
        # Of the difference: that of two products would lose the digits that it is about.
        product = (self._dense - inputs).T @ inputs
        self.H_drift = product if self.H_drift is None else self.H_drift.add_(product)
        self._dense = None

    def _hold_out(self, sequences: Tensor) -> None:
        """sequences: [sequences, seq, in], those that come next"""
        for number, inputs in enumerate(sequences, start=self.sequences):
            if number % HELD_OUT_EVERY:
                continue
            square = inputs.T @ inputs
            self.H_held_out = square if self.H_held_out is None else self.H_held_out.add_(square)
            self.tokens_held_out += len(inputs)

    def result(self) -> LayerStats:
        """The statistics, scaled as `LayerStats` says; H is handed over."""
        if self.H is None or self.squares is None or self.magnitudes is None:
            msg = f"{self.name}: saw no input during calibration; is it used by the model?"
            raise ConfigError(msg)
        held_out = self.H_held_out
        return LayerStats(
            tokens=self.tokens,
            tokens_held_out=self.tokens_held_out,
            x_norm=(self.squares / self.sequences).sqrt().float(),
            x_mean_abs=(self.magnitudes / self.tokens).float(),
            H=self.H.mul_(2 / self.tokens),
            X=torch.cat(self.inputs) if self.inputs else None,
            H_held_out=None if held_out is None else held_out.mul_(2 / self.tokens_held_out),
            H_drift=None if self.H_drift is None else self.H_drift.mul_(2 / self.tokens),
            x_max_abs=self.largest,
            **self.clipped.result(self.sequences),
        )


class ClippedInputs:
    """Sums over the inputs of one linear, without the largest of each sequence."""

    def __init__(self, name: str, needs: Statistic, moved: Tensor | None) -> None:
        """name: of the layer, for errors   moved: [in], what transforms divided the inputs by"""
        self.name, self.needs, self.moved = name, needs, moved
        self.squares: Tensor | None = None
        self.largest: Tensor | None = None
        self.total: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Take in one sequence.  inputs: [seq, in], float32"""
        # The largest are those that the model makes, before transforms.
        kept = clipped(inputs) if self.moved is None else clipped(inputs * self.moved) / self.moved
        squares, largest = kept.double().square().sum(0), kept.abs().amax(0)  # float64: as above
        if self.squares is None or self.largest is None:
            self.squares, self.largest = squares, largest
        else:
            self.squares += squares
            self.largest = torch.maximum(self.largest, largest)
        if self.needs & Statistic.X_MEAN_CLIPPED:
            self._add_by_position(kept)

    def _add_by_position(self, kept: Tensor) -> None:
        """kept: [seq, in], clipped"""
        if self.total is None:
            self.total = kept
        elif self.total.shape == kept.shape:
            self.total = self.total + kept
        else:
            msg = (
                f"{self.name}: reads {len(kept)} tokens of one sequence and {len(self.total)} of "
                f"another, and a mean for each position needs all of them in all sequences."
            )
            raise ConfigError(msg)

    def result(self, sequences: int) -> dict[str, Tensor]:
        """What of `LayerStats` was asked for."""
        found = {}
        if self.squares is not None and self.largest is not None:
            found["x_norm_clipped"] = (self.squares / sequences).sqrt().float()
            found["x_max_abs_clipped"] = self.largest
        if self.total is not None:
            found["X_mean_clipped"] = self.total / sequences
        return found


class Collecting:
    """What the linears of a block are given, as it is run."""

    def __init__(
        self, groups: list[list[str]], needs: Statistic, moved: Mapping[str, Tensor]
    ) -> None:
        """groups: names of linears that share an input, and so share statistics

        moved: [in], what transforms divided the inputs of some linears by
        """
        self.groups = groups
        self.accumulators = {
            group[0]: Accumulator(group[0], needs, moved.get(group[0])) for group in groups
        }

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Meanwhile, the block is run as it was before compression, on one sequence: its inputs are
        kept beside those of the run that follows, and are in no other statistic.
        """
        for accumulator in self.accumulators.values():
            accumulator.takes_dense = True
        try:
            yield
        finally:
            for accumulator in self.accumulators.values():
                accumulator.takes_dense = False

    def __call__(self) -> dict[str, LayerStats]:
        """Every layer's statistics of all that was run."""
        return {
            name: stats
            for group in self.groups
            for stats in [self.accumulators[group[0]].result()]
            for name in group
        }


@contextlib.contextmanager
def collected(
    modules: Mapping[str, nn.Module],
    groups: list[list[str]],
    needs: Statistic,
    moved: Mapping[str, Tensor] | None = None,
) -> Iterator[Collecting]:
    """Hook the first linear of each group; what is yielded gives every layer's statistics.

    groups: names of linears that share an input, and so share statistics
    moved: [in], what transforms divided the inputs of some linears by
    """
    found = Collecting(groups, needs, moved or {})
    handles = []
    for name, accumulator in found.accumulators.items():

        def hook(module: nn.Module, args: tuple[Any, ...], to: Accumulator = accumulator) -> None:
            to.add(args[0])

        handles.append(modules[name].register_forward_pre_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def ended_early(modules: Collection[nn.Module]) -> Iterator[None]:
    """Meanwhile, a forward ends with `EnoughError` once it has called all of these modules, before
    the last of them computes.  Hooks that were there before see every input.
    """
    wanted, reached = {id(module) for module in modules}, set[int]()

    def hook(module: nn.Module, _: tuple[Any, ...]) -> None:
        reached.add(id(module))
        if reached == wanted:
            reached.clear()
            raise EnoughError

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
