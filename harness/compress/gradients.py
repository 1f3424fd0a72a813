"""Gradients of the loss by every weight of a model before compression.

A pass before the walk and a stage of the store, shared by recipes with equal text.  Blocks are run
forwards once and backwards once, one at a time: in memory are one block, its gradients, and one
sequence.  What enters every block lies in files without a name.

The pass keeps squared gradients, a mean over sequences: the diagonal Fisher.  Gradients of each
sequence by each weight would be as many models as there are sequences.  Where a method asks for
them, the pass keeps what enters every block and the gradients by what leaves it, and they are made
again from those, a block at a time, when the walk is there.
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
from trinity.methods.contract import Statistic
from trinity.methods.errors import ConfigError


def block_file(folder: Path, index: int) -> Path:
    """Where the squared gradients of a block are."""
    return folder / f"block-{index:05d}.safetensors"


def load_gradients(folder: Path, index: int, device: torch.device) -> dict[str, Tensor]:
    """Squared gradients of a block's linears.  -> float32 [out, in] by name"""
    return {name: of.to(device) for name, of in load_file(block_file(folder, index)).items()}


def sequence_file(folder: Path, index: int, number: int) -> Path:
    """Where what enters a block in a sequence is, and the gradients by what leaves it."""
    return folder / f"block-{index:05d}-sequence-{number:05d}.safetensors"


def by_sequence(folder: Path, entering: Entering, samples: int, scratch: Path) -> dict[str, Tensor]:
    """Gradients of every sequence's mean loss by the linears of the loaded block, as it was.

    entering: at that block   -> float32 [samples, out, in] by name, on the CPU, in pages of files
    without a name in `scratch`
    """
    decoder = entering.decoder
    weights = _weights(decoder, entering.index)
    found = {
        name: mapped(1, torch.empty(samples, *of.shape, device="meta"), scratch)[0]
        for name, of in weights.items()
    }
    for number in range(samples):
        kept = load_file(sequence_file(folder, entering.index, number))
        hidden, given = (kept[part].to(decoder.device) for part in ("entering", "gradient"))
        for name, gradient in _backwards(entering, weights, hidden, given)[1].items():
            found[name][number].copy_(gradient)
    return found


def _weights(decoder: Decoder, index: int) -> dict[str, Tensor]:
    """Of the linears of a loaded block, [out, in] by name."""
    names = decoder.layer_names(index)
    return {name: weight_of(decoder.model.get_submodule(name)) for name in names}


def _backwards(
    entering: Entering, weights: Mapping[str, Tensor], hidden: Tensor, given: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients by what enters the loaded block, and by some of its weights.

    hidden: what enters, [seq, width]   given: gradients by what leaves, [seq, width]
    """
    with torch.enable_grad():
        leaves = {name: of.detach().requires_grad_() for name, of in weights.items()}
        hidden = hidden.detach().requires_grad_()
        output = entering.forward(leaves, hidden)
        before, *found = torch.autograd.grad(output, [hidden, *leaves.values()], given)
    return before, dict(zip(weights, found, strict=True))


class Gradients:
    """The pass.  Gradients are those of a sequence's mean loss."""

    def __init__(
        self,
        decoder: Decoder,
        calibration: Tensor | None,
        store: StageStore,
        inputs: Mapping[str, Any],
        needs: Statistic,
    ) -> None:
        """calibration: int64 [samples, seqlen]   inputs: what all stages depend on

        needs: FISHER, GRADIENTS or both
        """
        self.decoder, self.calibration, self.store = decoder, calibration, store
        self.inputs = {**inputs, "needs": needs.value}
        self.needs = needs

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
            states = entered.pop()
            if Statistic.GRADIENTS in self.needs:
                for number, state in enumerate(states):
                    both = {"entering": state[0], "gradient": entering.states[number][0].cpu()}
                    save_file(both, sequence_file(folder, index, number))
            found = self._block(entering, states)
            if Statistic.FISHER in self.needs:
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
        """A block's squared gradients, if they are asked for; gradients by its inputs take the
        place of those by its outputs.

        entered: what enters it, [1, seq, width] each
        """
        decoder, index = self.decoder, entering.index
        path = f"{decoder.family.blocks}.{index}"
        decoder.load(path)
        weights = _weights(decoder, index) if Statistic.FISHER in self.needs else {}
        found = {name: torch.zeros_like(of) for name, of in weights.items()}
        for number, state in enumerate(entered):
            hidden, given = state[0].to(decoder.device), entering.states[number][0]
            before, gradients = _backwards(entering, weights, hidden, given)
            if not all(bool(torch.isfinite(of).all()) for of in (before, *gradients.values())):
                msg = f"{path}: gradients hold NaN or infinity. Use `model.dtype: float32`."
                raise ConfigError(msg)
            entering.states[number] = before[None]
            for name, gradient in gradients.items():
                found[name].addcmul_(gradient, gradient, value=1 / len(entered))
        decoder.unload(path)
        return found
