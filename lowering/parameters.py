"""The parameters that a module reads: packed weights, and the rest of the model as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from trinity.lowering.graph.stand_ins import table_tensors
from trinity.lowering.plan import Lowering
from trinity.lowering.targets.choose import storage_of
from trinity.lowering.tensor_file import Shape, write_tensors
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Quantized, format_of


def write_parameters(
    path: Path,
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    names: Sequence[str],
    plan: Lowering,
) -> None:
    """Write the parameters of a module of the plan as one safetensors file: packed weights, and
    what else of the model it needs, tied ones once.

    weights: of the plan's formats, heads and tables; each is asked for as it is packed, so that a
        mapping that reads them holds one at a time
    """
    parameters = _Parameters(model, weights, plan)
    write_tensors(path, {name: parameters.shape(name) for name in names}, parameters.tensor)


class _Parameters:
    """Shapes of parameters before they are made, and then the parameters."""

    def __init__(
        self, model: nn.Module, weights: Mapping[str, CompressedWeight], plan: Lowering
    ) -> None:
        self.owned = dict(model.named_buffers()) | dict(model.named_parameters())
        self.weights, self.target = weights, plan.target
        formats = {name: replace(of, inputs=None) for name, of in plan.linears.items()}
        self.shapes = {name: storage_of(of, plan.target).shapes() for name, of in formats.items()}
        self.tables = {name: self._table(name) for name in plan.tables}
        self._packed: tuple[str, dict[str, Tensor]] = "", {}

    def shape(self, name: str) -> Shape:
        """Of one parameter, and its type."""
        layer, _, key = name.rpartition(".")
        if found := self.shapes.get(layer, {}).get(key):
            return found
        tensor = self.tensor(name)
        return tuple(tensor.shape), tensor.dtype

    def tensor(self, name: str) -> Tensor:
        """One parameter; ConfigError, with the layer's name, if its storage does not take it."""
        layer, _, key = name.rpartition(".")
        if key not in self.shapes.get(layer, {}):
            table = self.tables.get(layer, {})
            return table[key] if key in table else self.owned[name]
        if self._packed[0] != layer:
            self._packed = "", {}  # let go of one before the next is made
            self._packed = layer, self._stored(layer)
        return self._packed[1][key]

    def _stored(self, layer: str) -> dict[str, Tensor]:
        weight = self.weights[layer]
        try:
            return storage_of(format_of(weight), self.target).pack(weight)
        except ConfigError as error:
            msg = f"{layer}: {error}"
            raise ConfigError(msg) from error

    def _table(self, layer: str) -> dict[str, Tensor]:
        table = self.weights[layer]
        assert isinstance(table, Dense | Quantized)
        return table_tensors(table)
