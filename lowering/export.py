"""From a Hugging Face decoder to one step in the torch dialect, its compressed linears opaque.

A step takes token ids, their positions and the key/value caches, writes the caches in place, and
gives logits.  The number of tokens and the length of the caches are fixed; what a position may
attend to is an explicit mask, so one step serves prefill in chunks and decoding alike.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trinity.lowering.dialects import import_program
from trinity.lowering.storage import layout_of
from trinity.methods.errors import ConfigError, LoweringError, UnsupportedError
from trinity.methods.formats import Dense, Quantized, WeightFormat


@dataclass(frozen=True)
class Geometry:
    """What of a decoder's architecture a step must know.

    layer_types: 'full_attention' or 'sliding_attention' of every block, if the model takes one
    mask a
        type; None if it takes one mask
    window: positions that a sliding layer sees, its own included; None without sliding layers
    """

    layers: int
    kv_heads: int
    head_dim: int
    max_positions: int
    layer_types: tuple[str, ...] | None
    window: int | None

    @staticmethod
    def of(config: Any) -> "Geometry":  # Any: transformers' config, which lowering must not import
        """Read a Hugging Face configuration."""
        heads = config.num_attention_heads
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        unknown = set(types or ()) - {"full_attention", "sliding_attention"}
        if unknown:
            msg = (
                f"model {config.model_type}: blocks of type {', '.join(sorted(unknown))} cannot "
                "be lowered. "
                f"Full and sliding attention can."
            )
            raise UnsupportedError(msg)
        return Geometry(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.max_position_embeddings,
            tuple(types) if types else None,
            window,
        )


@dataclass(frozen=True)
class StepShape:
    """Fixed sizes of one compiled step.

    tokens: T of each sequence, 1 to decode   max_length: longest sequence   cache_length: caches,
    room for a padded tail   batch: sequences, all at the same position
    """

    tokens: int
    max_length: int
    cache_length: int
    batch: int = 1


class ArgumentCache:
    """The least that transformers asks of a cache; keys and values are the caller's, written in
    place.
    """

    is_compileable = True

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor) -> None:
        """keys, values: one [batch, heads, cache_length, head_dim] a block; positions: [T]."""
        self.keys, self.values, self.positions = keys, values, positions
        self.is_sliding = [False] * len(keys)

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions of one block; the whole cache comes back."""
        self.keys[layer].index_copy_(2, self.positions, key)
        self.values[layer].index_copy_(2, self.positions, value)
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, _layer: int = 0) -> int:
        """Nothing is asked of the length: positions and mask are explicit."""
        return 0

    def get_mask_sizes(self, _query_length: int, _layer: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self.keys[0].shape[2], 0

    def get_max_cache_shape(self, *_args: object) -> int:
        """Length of the caches."""
        return self.keys[0].shape[2]

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.keys)


class Step(nn.Module):
    """`step(ids [batch, T], positions [T], *keys, *values) -> logits [batch, T, vocab]`, float32.

    All sequences stand at the same positions, so one mask serves them all.
    """

    def __init__(self, model: nn.Module, geometry: Geometry, shape: StepShape) -> None:
        """model: a Hugging Face decoder with a language-model head, in eval mode."""
        super().__init__()
        self.model, self.geometry, self.shape = model, geometry, shape

    def forward(self, ids: Tensor, positions: Tensor, *caches: Tensor) -> Tensor:
        """One step; positions past `max_length` are padding, and only they may be.  -> [batch, T,
        vocab]
        """
        keys, values = caches[: self.geometry.layers], caches[self.geometry.layers :]
        # Padding has room in the caches, but may be past the end of a learned position table.
        known = positions.clamp(max=self.shape.max_length - 1)
        output = self.model(
            input_ids=ids,
            position_ids=known[None],
            attention_mask=self.masks(positions, keys[0].dtype),
            past_key_values=ArgumentCache(keys, values, positions),
            use_cache=True,
        )
        logits: Tensor = output.logits.float()
        return logits

    def masks(self, positions: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What each position attends to, as a number to add.  -> [1, 1, T, cache_length]"""
        places = torch.arange(self.shape.cache_length, device=positions.device)[None, :]
        distance = positions[:, None] - places
        seen = distance >= 0
        near = seen if self.geometry.window is None else seen & (distance < self.geometry.window)
        zero = torch.zeros((), dtype=dtype, device=positions.device)
        full, sliding = (
            torch.where(mask, zero, torch.finfo(dtype).min)[None, None] for mask in (seen, near)
        )
        if self.geometry.layer_types is not None:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding


@torch.library.custom_op("trinity::packed_linear", mutates_args=())
def packed_linear(x: Tensor, storage: list[Tensor], layer: str, layout: str, d_out: int) -> Tensor:
    """X W^T of a stored weight; in torch by dequantizing.  x: [rows, in] -> [rows, out], float32"""
    weight_format = WeightFormat.from_json(json.loads(layout))
    stored = layout_of(weight_format)
    weight = stored.unpack(dict(zip(stored.shapes(), storage, strict=True))).dequantize()
    return x.float() @ weight.T


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
            _replace(model, name, PackedLinear(name, formats[name], bias, tensors))
        yield
    finally:
        for name, layer in original.items():
            _replace(model, name, layer)


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
            _replace(model, name, PackedEmbedding(tensors, weight.dtype))
        yield
    finally:
        for name, layer in original.items():
            _replace(model, name, layer)


def export_step(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    geometry: Geometry,
    shape: StepShape,
    tables: Mapping[str, WeightFormat] | None = None,
) -> str:
    """Stage torch: one step as text, parameters external, compressed linears opaque.

    The numbers in `model` are not read: it may be on `meta`.
    tables: of embeddings that are stored narrower than the model has them, by name
    """
    first = first_names(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        # Traced on meta, tensors made on the way would be of a device that no compiler knows. Empty
        # memory costs nothing until it is written.
        model = copy.deepcopy(model).to_empty(device="cpu")
    device = next(model.parameters()).device
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    ids = torch.zeros(shape.batch, shape.tokens, dtype=torch.int64, device=device)
    positions = torch.arange(shape.tokens, device=device)
    cache = (shape.batch, geometry.kv_heads, shape.cache_length, geometry.head_dim)
    caches = [torch.zeros(cache, dtype=dtype, device=device) for _ in range(2 * geometry.layers)]
    replaced = packed_linears(model, formats), packed_tables(model, tables or {})
    with replaced[0], replaced[1], _evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(
                Step(model, geometry, shape), (ids, positions, *caches), strict=False
            )
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            kind = type(model).__name__
            msg = f"{kind}: torch.export cannot trace a step of {shape.tokens} tokens: {error}"
            raise LoweringError(msg) from error
    return import_program(
        program,
        step_name(shape.tokens),
        lambda target: first.get(target.removeprefix("model."), target.removeprefix("model.")),
    )


def step_name(tokens: int) -> str:
    """The function of a module that takes this many tokens."""
    return f"step_{tokens}"


def first_names(model: nn.Module) -> dict[str, str]:
    """The one name under which a tensor with several names (a tied weight) is stored."""
    seen: dict[int, str] = {}
    return {
        name: seen.setdefault(id(tensor), name)
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }


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


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
