"""Squared gradients of the loss by every weight of a model before compression: its diagonal Fisher.

A pass before the walk and a stage of the store, shared by recipes with equal text.  Blocks are run
forwards once and backwards once, one at a time: in memory are one block, its gradients, and one
sequence.  What enters every block lies in files without a name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trinity.harness.compress.block_calls import logits_after
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.hidden import mapped
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError


def block_file(folder: Path, index: int) -> Path:
    """Where the squared gradients of a block are."""
    return folder / f"block-{index:05d}.safetensors"


def load_gradients(folder: Path, index: int, device: torch.device) -> dict[str, Tensor]:
    """Squared gradients of a block's linears.  -> float32 [out, in] by name"""
    return {name: of.to(device) for name, of in load_file(block_file(folder, index)).items()}


class Gradients:
    """The pass.  Mean over sequences of the squared gradient of a sequence's mean loss."""

    def __init__(
        self,
        decoder: Decoder,
        calibration: Tensor | None,
        store: StageStore,
        inputs: Mapping[str, Any],
    ) -> None:
        """calibration: int64 [samples, seqlen]   inputs: what all stages depend on"""
        self.decoder, self.calibration, self.store = decoder, calibration, store
        self.inputs = inputs

    def run(self, say: Callable[[int, int], None]) -> Path:
        """The folder of the stage: a file a block."""
        return self.store.fill("gradients", self.inputs, lambda folder: self._write(folder, say))

    def _write(self, folder: Path, say: Callable[[int, int], None]) -> None:
        decoder, sequences = self.decoder, self.calibration
        if sequences is None:
            msg = "gradients: the recipe has no `calibration:`, and a loss is that of a text."
            raise ConfigError(msg)
        with torch.no_grad():
            entering = Entering(decoder, sequences, self.store.root)
            entered = []
            for _ in decoder.blocks:
                states = mapped(len(sequences), entering.states[0].cpu(), self.store.root)
                for kept, hidden in zip(states, entering.states, strict=True):
                    kept.copy_(hidden)
                entered.append(states)
                entering.advance({})
        self._of_loss(entering, sequences)
        for index in reversed(range(len(decoder.blocks))):
            entering.index = index
            found = self._block(entering, entered.pop())
            for name, squares in found.items():
                if not bool(torch.isfinite(squares).all()):
                    msg = f"{name}: its gradients hold NaN or infinity. Use `model.dtype: float32`."
                    raise ConfigError(msg)
            save_file({name: of.cpu() for name, of in found.items()}, block_file(folder, index))
            say(len(decoder.blocks) - index, len(decoder.blocks))

    def _of_loss(self, entering: Entering, sequences: Tensor) -> None:
        """Put the loss's gradient by what the last block gives in the place of that."""
        decoder = self.decoder
        decoder.load_outside_blocks()
        for number, ids in enumerate(sequences.to(decoder.device)):
            with torch.enable_grad():
                hidden = entering.states[number].detach().requires_grad_()
                logits = logits_after(decoder.model, decoder.blocks, ids[None], hidden)[0]
                loss = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:])
                (gradient,) = torch.autograd.grad(loss, hidden)
            entering.states[number] = gradient
        decoder.unload_outside_blocks()

    def _block(self, entering: Entering, entered: list[Tensor]) -> dict[str, Tensor]:
        """A block's squared gradients; those by its inputs take the place of those by its outputs.

        entered: what enters it, [1, seq, width] each
        """
        decoder, index = self.decoder, entering.index
        path = f"{decoder.family.blocks}.{index}"
        decoder.load(path)
        names = decoder.layer_names(index)
        weights = {name: weight_of(decoder.model.get_submodule(name)) for name in names}
        found = {name: torch.zeros_like(W) for name, W in weights.items()}
        for number, state in enumerate(entered):
            with torch.enable_grad():
                leaves = {name: W.detach().requires_grad_() for name, W in weights.items()}
                hidden = state[0].to(decoder.device).requires_grad_()
                output = entering.forward(leaves, hidden)
                wanted, given = [hidden, *leaves.values()], entering.states[number][0]
                before, *gradients = torch.autograd.grad(output, wanted, given)
            entering.states[number] = before[None]
            for name, gradient in zip(names, gradients, strict=True):
                found[name].addcmul_(gradient, gradient, value=1 / len(entered))
        decoder.unload(path)
        return found
