"""Small models built for a target, and what torch says of them."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.lower import LoweredModel, lower
from trinity.lowering.module.invoke import CompiledModel, CompiledSession
from trinity.lowering.parameters import write_parameters
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, format_of

LENGTHS, LONGEST = (1, 8), 21


@dataclass
class Built:
    model: nn.Module
    weights: dict[str, CompressedWeight]
    plan: Lowering
    lowered: LoweredModel
    folder: Path

    @property
    def parameters(self) -> Path:
        return self.folder / "parameters.safetensors"

    def load(self) -> CompiledModel:
        return CompiledModel(self.folder, self.parameters, self.plan.target)


def build(
    model: nn.Module,
    weights: dict[str, CompressedWeight],
    target: str,
    folder: Path,
    batch: int = 1,
    heads: dict[str, CompressedWeight] | None = None,
    tables: dict[str, CompressedWeight] | None = None,
    lengths: tuple[int, ...] = LENGTHS,
    longest: int = LONGEST,
    cpu: str = cpus.HOST,
) -> Built:
    formats, head_formats, table_formats = (
        {name: format_of(weight) for name, weight in (of or {}).items()}
        for of in (weights, heads, tables)
    )
    plan = Lowering(
        model.config,
        formats,
        targets.get(target, cpu),
        lengths,
        longest,
        batch=batch,
        heads=head_formats,
        tables=table_formats,
    )
    # The module is made from shapes alone: numbers only enter through the parameter file.
    shapes = copy.deepcopy(model).to("meta")
    shapes.tie_weights()  # type: ignore[operator]  # a method of transformers' models; .to() unties
    lowered = lower(shapes, plan)
    lowered.save(folder)
    path = folder / "parameters.safetensors"
    stored = weights | (heads or {}) | (tables or {})
    write_parameters(path, model, stored, lowered.parameters, plan)
    return Built(model, weights, plan, lowered, folder)


def dense_logits(built: Built, ids: Tensor) -> Tensor:
    """Torch with the dequantized weights put into a copy of the model, no code of lowering in it;
    each sequence alone.  ids: [batch, seq] -> [batch, seq, vocab]
    """
    model = copy.deepcopy(built.model)
    with torch.no_grad():
        for name, weight in built.weights.items():
            layer = model.get_submodule(name)
            values = weight.dequantize()
            layer.weight.copy_(values.T if hasattr(layer, "nf") else values)
        return torch.cat([model(sequence[None]).logits for sequence in ids])


def tokens(count: int, batch: int = 1) -> Tensor:
    return torch.randint(3, 64, (batch, count), generator=torch.Generator().manual_seed(3))


def decoded(session: CompiledSession, ids: Tensor, prompt: int) -> Tensor:
    """Logits of the prompt's last position and of each token after it.  -> [batch, steps, vocab]"""
    found = [session.prefill(ids[:, :prompt])]
    found += [session.step(column) for column in ids[:, prompt:].unbind(1)]
    return torch.stack(found, dim=1)
