"""`trinity::packed_linear`: a product with a compressed weight."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trinity.lowering.graph.annotate import annotated_call, function_name, storage_call
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.mlir.calls import PackedCall, Signature, Site
from trinity.lowering.plan import Lowering
from trinity.lowering.rows.row_storage import layout_of
from trinity.lowering.targets.choose import linear_code
from trinity.methods.errors import ConfigError
from trinity.methods.formats import WeightFormat


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
        """tensors: what `Layout.pack` gave, or none, for shapes only: then the call says nothing of
        the format, and weights of any are exported alike.
        """
        super().__init__()
        self.layer, self.weight_format, self.bias = layer, weight_format, bias
        self.layout = json.dumps(weight_format.to_json(), sort_keys=True) if tensors else ""
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


class LinearOperator(Operator):
    """Every compressed linear of a model."""

    signature = Signature("packed_linear", site=2, rows=0, prefix="linear_", parameter="weight")

    def __init__(self, plan: Lowering) -> None:
        """plan: whose compressed linears and narrow heads they are"""
        self.formats, self.target, self.dtype = plan.linears, plan.target, plan.dtype

    def stand_ins(self, model: nn.Module, tokens: int) -> Mapping[str, nn.Module]:
        """See `Operator`."""
        return packed_linears(model, self.formats)

    def opaque(self, tokens: int) -> list[str]:
        """See `Operator`."""
        return [f"{name} {list(self.formats[name].shape)}" for name in sorted(self.formats)]

    def annotated(self, site: Site) -> PackedCall:
        """See `Operator`."""
        return annotated_call(site.name, self.formats[site.name], site.rows)

    def stored(self, site: Site) -> PackedCall:
        """See `Operator`."""
        return storage_call(site.name, self.formats[site.name], site.rows, self.target)

    def code(self, site: Site) -> KernelCode | None:
        """See `Operator`."""
        weight_format = self.formats[site.name]
        name = function_name(weight_format, site.rows)
        return linear_code(name, weight_format, self.target, site.rows, self.dtype)


def packed_linears(model: nn.Module, formats: Mapping[str, WeightFormat]) -> dict[str, nn.Module]:
    """Packed linears in the place of the named layers, for shapes only."""
    return {
        name: packed_linear_of(_named(model, name), name, of, {}) for name, of in formats.items()
    }


def packed_linear_of(
    layer: nn.Module, name: str, weight_format: WeightFormat, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """A packed linear in the place of a layer; ConfigError if it cannot be replaced by this weight.

    tensors: as of `PackedLinear`
    """
    _check_shape(layer, name, weight_format)
    bias = layer.bias if isinstance(layer.bias, nn.Parameter) else None
    return PackedLinear(name, weight_format, bias, tensors)


def _named(model: nn.Module, name: str) -> nn.Module:
    """The layer of that name; ConfigError if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        msg = f"{name}: {type(model).__name__} has no such layer."
        raise ConfigError(msg) from error


def _check_shape(layer: nn.Module, name: str, weight_format: WeightFormat) -> None:
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
