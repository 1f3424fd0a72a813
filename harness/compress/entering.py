"""What enters the blocks of a model: hidden states on a text, a block further each time.

Only they and one block's weights are in memory.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trinity.harness.compress.activations import EnoughError, collected, ended_early
from trinity.harness.compress.block_calls import (
    BlockCall,
    RecordedCall,
    hidden_of,
    recorded_calls,
)
from trinity.harness.compress.hidden import Hidden
from trinity.harness.models.decoder import Decoder, oriented, set_weight, wider
from trinity.harness.records import products
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight

NO_NUMBERS = (
    "No type here is wider: look at the model's weights, or compress the blocks before in another "
    "way."
)


class Entering:
    """The inputs of block `index`, of all sequences, and how the model calls every block."""

    def __init__(self, decoder: Decoder, sequences: Tensor, folder: Path) -> None:
        """Embed the text.  sequences: int64 [samples, seqlen]   folder: for what memory lacks"""
        self.decoder, self.index = decoder, 0
        decoder.model.requires_grad_(False)  # gradients are those of the weights of `forward`
        decoder.load_outside_blocks()
        calls = self._recorded(sequences[0])
        self.states = Hidden(len(sequences), calls[0][0], folder)
        for number, ids in enumerate(sequences):
            calls = self._recorded(ids)
            self.states[number] = calls[0][0]
        decoder.unload_outside_blocks()
        self._check_finite()
        # All sequences are equally long, so masks and positions of the last stand for all.
        self._calls: list[BlockCall] = [call for _, call in calls]

    def _recorded(self, ids: Tensor) -> list[RecordedCall]:
        on_device = ids[None].to(self.decoder.device)
        return recorded_calls(self.decoder.model, self.decoder.blocks, on_device)

    def advance(self, weights: Mapping[str, CompressedWeight]) -> None:
        """Run the block, with other weights in some of its linears: the next one's inputs."""
        path = f"{self.decoder.family.blocks}.{self.index}"
        self.decoder.load(path)
        for name, weight in weights.items():
            linear = self.decoder.model.get_submodule(name)
            set_weight(linear, weight.dequantize().to(self.decoder.device), self.decoder.dtype)
        self.states.replace(self.run)
        self.decoder.unload(path)
        self.index += 1
        self._check_finite()

    def run(self, hidden: Tensor) -> Tensor:
        """The loaded block's output for one input, [1, seq, width] both."""
        call = self._calls[self.index]
        block = self.decoder.blocks[self.index]
        with products.fastest():
            return hidden_of(block(hidden, *call.args, **call.kwargs))

    def forward(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The loaded block's output with other weights, differentiable in them.

        weights: [out, in] by linear   inputs: [seq, width]  ->  [seq, width]
        """
        state = {}
        for name, weight in weights.items():
            own = oriented(self.decoder.model.get_submodule(name), weight)
            state[f"{name}.weight"] = own.to(self.decoder.dtype)
        return self.with_tensors(state, inputs)

    def with_tensors(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The loaded block's output with some other parameters, each as the model holds it.

        tensors: by full name   inputs: [seq, width]  ->  [seq, width]
        """
        prefix = f"{self.decoder.family.blocks}.{self.index}."
        call, block = self._calls[self.index], self.decoder.blocks[self.index]
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        given = (inputs[None], *call.args)
        return hidden_of(torch.func.functional_call(block, state, given, call.kwargs))[0]

    def statistics(self, names: Sequence[str], needs: Statistic) -> dict[str, LayerStats]:
        """What some linears of the loaded block are given, over all sequences."""
        linears = {name: self.decoder.model.get_submodule(name) for name in names}
        prefix = f"{self.decoder.family.blocks}.{self.index}."
        groups = [
            kept
            for group in self.decoder.family.groups
            if (kept := [prefix + name for name in group if prefix + name in linears])
        ]
        first = [linears[group[0]] for group in groups]
        with collected(linears, groups, needs) as found, ended_early(first):
            for hidden in self.states:
                with contextlib.suppress(EnoughError):
                    self.run(hidden)
        return found()

    def _check_finite(self) -> None:
        """ConfigError if what enters a block is not finite: nothing can be calibrated on it."""
        if not all(bool(torch.isfinite(hidden).all()) for hidden in self.states):
            msg = (
                f"{self.decoder.family.blocks}.{self.index}: its inputs hold NaN or infinity in "
                f"{str(self.decoder.dtype).removeprefix('torch.')}. "
                f"{wider(self.decoder.dtype, NO_NUMBERS)}"
            )
            raise ConfigError(msg)
