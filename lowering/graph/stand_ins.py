"""Modules in the place of others while a model is exported, and embeddings that are stored narrower
than a model has them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trinity.methods.formats import Dense, Quantized, WeightFormat


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in the place of those of these names, and restore them."""
    original = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            _put(model, name, module)
        yield
    finally:
        for name, module in original.items():
            _put(model, name, module)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


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


def stored_tables(model: nn.Module, tables: Mapping[str, WeightFormat]) -> dict[str, nn.Module]:
    """Embeddings of these formats in the place of the model's, for shapes only, by name."""
    made: dict[str, nn.Module] = {}
    for name, table in tables.items():
        weight = model.get_submodule(name).get_parameter("weight")
        values = torch.zeros(table.shape, dtype=getattr(torch, table.dtype or "int8"))
        tensors = {"values": values.to(weight.device)}
        if table.grid:
            dtype = getattr(torch, table.grid.scale_dtype)
            scale = torch.zeros(table.grid.scale_shape, dtype=dtype)
            tensors["scale"] = scale.to(weight.device)
        made[name] = PackedEmbedding(tensors, weight.dtype)
    return made
