"""Modules that stand in for layers whose weights are stored otherwise, in torch and for export."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trinity.lowering.storage import layout_of
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Dense, Quantized, WeightFormat


@torch.library.custom_op("trinity::packed_linear", mutates_args=())
def packed_linear(x: Tensor, storage: list[Tensor], layer: str, layout: str, d_out: int) -> Tensor:
    """X W^T of a stored weight, X rounded if the format says so; in torch by dequantizing.

    x: [rows, in] -> [rows, out], float32
    """
    weight_format = WeightFormat.from_json(json.loads(layout))
    stored = layout_of(weight_format)
    weight = stored.unpack(dict(zip(stored.shapes(), storage, strict=True))).dequantize()
    rounded = weight_format.inputs.rounded(x) if weight_format.inputs else x
    return rounded.float() @ weight.T


@packed_linear.register_fake
def _packed_linear_shape(
    x: Tensor, storage: list[Tensor], layer: str, layout: str, d_out: int
) -> Tensor:
    return x.new_empty((x.shape[0], d_out), dtype=torch.float32)


class PackedLinear(nn.Module):
    """A linear layer that calls `trinity::packed_linear`, its bias added outside."""

    def __init__(
        self,
        layer: str,
        weight_format: WeightFormat,
        bias: nn.Parameter | None,
        tensors: Mapping[str, Tensor],
    ) -> None:
        """tensors: what `Layout.pack` gave, or tensors of those shapes on `meta`."""
        super().__init__()
        self.layer, self.weight_format, self.bias = layer, weight_format, bias
        self.layout = json.dumps(weight_format.to_json(), sort_keys=True)
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out], the type of x"""
        out, d_in = self.weight_format.shape
        storage = [self.get_buffer(name) for name in self.names]
        rows = x.reshape(-1, d_in).float()
        y: Tensor = packed_linear(rows, storage, self.layer, self.layout, out)
        y = y.reshape(*x.shape[:-1], out).to(x.dtype)
        return y if self.bias is None else y + self.bias


@contextmanager
def packed_linears(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    storage: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Iterator[None]:
    """Replace the named linear layers, and restore them.  Without `storage`, for shapes only."""
    original = {name: _linear(model, name, formats[name]) for name in formats}
    try:
        for name, layer in original.items():
            device = next(layer.parameters()).device
            tensors = (
                storage[name]
                if storage
                else {
                    key: torch.zeros(shape, dtype=dtype, device=device)
                    for key, (shape, dtype) in layout_of(formats[name]).shapes().items()
                }
            )
            bias = layer.bias if isinstance(layer.bias, nn.Parameter) else None
            replace_layer(model, name, PackedLinear(name, formats[name], bias, tensors))
        yield
    finally:
        for name, layer in original.items():
            replace_layer(model, name, layer)


class PackedEmbedding(nn.Module):
    """An embedding whose table is stored in a narrower format that holds it exactly."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """tensors: as `table_tensors` gives them   dtype: of what comes out"""
        super().__init__()
        self.dtype, self.quantized = dtype, "scale" in tensors
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: int64 [...] -> [..., width]"""
        flat = ids.reshape(-1)
        rows = self.get_buffer("values").index_select(0, flat).to(self.dtype)
        if self.quantized:
            scale = self.get_buffer("scale").index_select(0, flat).to(self.dtype)
            rows = (rows.view(*scale.shape, -1) * scale[..., None]).flatten(1)
        return rows.view(*ids.shape, -1)


def table_tensors(weight: Dense | Quantized) -> dict[str, Tensor]:
    """What is stored of an embedding's table [vocab, width]: its values, or codes and scales."""
    if isinstance(weight, Dense):
        return {"values": weight.values}
    return {"values": weight.codes, "scale": weight.scale}


@contextmanager
def packed_tables(model: nn.Module, tables: Mapping[str, WeightFormat]) -> Iterator[None]:
    """Replace the named embeddings, for shapes only, and restore them."""
    original = {name: model.get_submodule(name) for name in tables}
    try:
        for name, layer in original.items():
            weight, found = layer.get_parameter("weight"), tables[name]
            values = torch.zeros(found.shape, dtype=getattr(torch, found.dtype or "int8"))
            tensors = {"values": values.to(weight.device)}
            if found.grid:
                scale = torch.zeros(
                    found.grid.scale_shape, dtype=getattr(torch, found.grid.scale_dtype)
                )
                tensors["scale"] = scale.to(weight.device)
            replace_layer(model, name, PackedEmbedding(tensors, weight.dtype))
        yield
    finally:
        for name, layer in original.items():
            replace_layer(model, name, layer)


def _linear(model: nn.Module, name: str, weight_format: WeightFormat) -> nn.Module:
    """The layer of that name; ConfigError if it cannot be replaced by this weight."""
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        msg = f"{name}: {type(model).__name__} has no such layer."
        raise ConfigError(msg) from error
    weight = getattr(layer, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if hasattr(layer, "nf"):  # GPT-2's Conv1D keeps its weight as [in, out]
        shape = shape[::-1]
    if shape != weight_format.shape:
        msg = (
            f"{name}: the layer's weight is {list(shape)}, the compressed weight "
            f"{list(weight_format.shape)}."
        )
        raise ConfigError(msg)
    return layer


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
