"""The parameters that a module reads: packed weights, and the rest of the model as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from trinity.lowering.graph.stand_ins import table_tensors
from trinity.lowering.plan import Lowering
from trinity.lowering.targets.choose import storage_of
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Quantized, format_of


def parameter_tensors(
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    names: Sequence[str],
    plan: Lowering,
) -> dict[str, Tensor]:
    """The tensors that a module of the plan reads: packed weights, and what else of the model it
    needs, tied ones once.

    weights: of the plan's formats, heads and tables
    """
    owned = dict(model.named_buffers()) | dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name in names:
        layer, _, key = name.rpartition(".")
        if layer in weights:
            if layer not in packed:  # names are sorted: one at a time
                packed = {layer: _stored(layer, weights[layer], plan)}
            if key in packed[layer]:
                found[name] = packed[layer][key]
                continue
        found[name] = owned[name].detach()
    return {name: tensor.contiguous().cpu() for name, tensor in found.items()}


def _stored(layer: str, weight: CompressedWeight, plan: Lowering) -> dict[str, Tensor]:
    """The tensors of one layer; ConfigError, with its name, if its storage does not take it."""
    if layer not in plan.tables:
        try:
            return storage_of(format_of(weight), plan.target).pack(weight)
        except ConfigError as error:
            msg = f"{layer}: {error}"
            raise ConfigError(msg) from error
    assert isinstance(weight, Dense | Quantized)
    return table_tensors(weight)


def write_parameters(
    path: Path,
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    names: Sequence[str],
    plan: Lowering,
) -> None:
    """Write the parameters of a module of the plan as one safetensors file."""
    save_file(parameter_tensors(model, weights, names, plan), path)
