"""SLiM's optional fine-tuning, with what is stored always on its grid (arXiv:2410.09615, sec. 3.4).

The compressed model is trained as a language model for a short while.  A layer with an adapter
trains the two factors and freezes the rest; a layer without one trains its weight under its mask.
What is quantized or pruned is so in every forward pass, and gradients pass through unchanged
(straight through), so the tuned model is in the format it came in.

Differs from the paper and the code:
- Norms, embeddings and the head stay frozen; the code trains them (the paper speaks of adapters).
- Scales stay, codes move.  The code takes a new AbsMax scale in every pass, also where the scale
  came from SLiM-Quant's search.
- The paper uses AdaFactor and the code AdamW: both are there.  Sequences come in the order drawn.
- Weights are float32 while they are trained, not bfloat16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from trinity.methods.contract import MethodConfig, ModelTask
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, CompressedWeight, Dense, Transposed, WithOutliers
from trinity.methods.training.straight_through import decoded, like, straight_through


class SlimTuneConfig(MethodConfig):
    """Defaults are the code's; the paper's optimizer is `adafactor`.

    batch: sequences of one step   warmup: steps of linear warm-up, then linear decay to 0
    """

    learning_rate: PositiveFloat = 1e-5
    weight_decay: NonNegativeFloat = 1e-2
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    batch: PositiveInt = 64
    epochs: PositiveInt = 1
    warmup: NonNegativeInt = 5


@dataclass(eq=False)
class Tuned:
    """One layer in training.

    weight: as it came   frozen: what the product of the factors is added to, or None
    parameters: B and A, or the weight
    """

    weight: CompressedWeight
    frozen: Tensor | None
    parameters: list[Tensor]

    @staticmethod
    def of(weight: CompressedWeight) -> "Tuned":
        """Parameters that start at what is stored."""
        if isinstance(weight, Adapted):
            factors = [decoded(weight.B), decoded(weight.A)]
            return Tuned(weight, weight.base.dequantize(), [f.requires_grad_() for f in factors])
        return Tuned(weight, None, [weight.dequantize().requires_grad_()])

    def effective(self) -> Tensor:
        """The weight [out, in] that the parameters stand for, differentiable in them."""
        if isinstance(self.weight, Adapted):
            assert self.frozen is not None
            B = straight_through(self.weight.B, self.parameters[0])
            A = straight_through(self.weight.A, self.parameters[1])
            return self.frozen + B @ A
        return straight_through(self.weight, self.parameters[0])

    def stored(self) -> CompressedWeight:
        """The tuned weight in the format it came in."""
        values = [parameter.detach() for parameter in self.parameters]
        if isinstance(self.weight, Adapted):
            B, A = like(self.weight.B, values[0]), like(self.weight.A, values[1])
            assert not isinstance(B, (Dense, WithOutliers))
            assert not isinstance(A, (Dense, WithOutliers))
            return Adapted(self.weight.base, B, A)
        found = like(self.weight, values[0])
        assert not isinstance(found, (Tensor, Transposed))
        return found


@torch.enable_grad()
def tune(task: ModelTask, config: SlimTuneConfig) -> dict[str, CompressedWeight]:
    """Train the parameters of every layer on the task's sequences."""
    layers = {name: Tuned.of(weight) for name, weight in task.current.items()}
    parameters = [p for layer in layers.values() for p in layer.parameters]
    optimizer = _optimizer(parameters, config)
    batches = list(torch.split(task.sequences, config.batch)) * config.epochs
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, len(batches), config.warmup)
        _backward(task, layers, batch)
        optimizer.step()
        optimizer.zero_grad()
    return {name: layer.stored() for name, layer in layers.items()}


def _backward(task: ModelTask, layers: Mapping[str, Tuned], batch: Tensor) -> None:
    """Add the gradient of the mean loss of a batch.

    The effective weights are made once a batch, and the sequences add to *their* gradients.
    """
    made = {name: layer.effective() for name, layer in layers.items()}
    leaves = {name: weight.detach().requires_grad_() for name, weight in made.items()}
    for ids in batch:
        loss = task.loss(leaves, ids) / len(batch)
        if not bool(torch.isfinite(loss)):
            msg = (
                "slim-tune: the loss is not finite. The compressed model overflows, or the "
                "learning rate is too high."
            )
            raise ConfigError(msg)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    used = [name for name, leaf in leaves.items() if leaf.grad is not None]
    torch.autograd.backward([made[name] for name in used], [leaves[name].grad for name in used])


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Part of the learning rate in a step: linear up over `warmup` steps, then linear down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / (steps - min(warmup, steps - 1))


def _optimizer(parameters: list[Tensor], config: SlimTuneConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


class _SlimTune:
    name = "slim-tune"
    paper = "arXiv:2410.09615"
    config = SlimTuneConfig

    def compress_model(
        self, task: ModelTask, config: SlimTuneConfig
    ) -> Mapping[str, CompressedWeight]:
        return tune(task, config)


SLIM_TUNE = _SlimTune()
