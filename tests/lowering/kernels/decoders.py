"""Blocks and attentions beside the library's own in float64, whichever kernels compute them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.lowering.kernels import arm
from tests.oracles import caches as oracle
from trinity.lowering.kernels.calls import KernelCode, with_kernels
from trinity.lowering.kernels.decoder_parts import (
    LINEARS,
    NORMS,
    AttentionFormat,
    BlockFormat,
    Heads,
)
from trinity.lowering.kernels.kernel_storage import KernelStorage
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.methods.formats import (
    CacheFormat,
    CompressedWeight,
    InputFormat,
    Nested,
    Quantized,
    WeightFormat,
    WithOutliers,
    format_of,
)

Make = Callable[..., CompressedWeight]
Load = Callable[[str], "Loaded | arm.Emulated"]
HIDDEN, INNER, WIDTH, HEADS, KV_HEADS, LONGEST = 96, 160, 32, 3, 1, 40
SHAPES = {
    "q_proj": (HEADS * WIDTH, HIDDEN),
    "k_proj": (KV_HEADS * WIDTH, HIDDEN),
    "v_proj": (KV_HEADS * WIDTH, HIDDEN),
    "o_proj": (HIDDEN, HEADS * WIDTH),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}


def scaled(weight: CompressedWeight) -> CompressedWeight:
    """The same weight with entries small enough that a block does not blow up."""
    if isinstance(weight, Quantized):
        return replace(weight, scale=weight.scale / 2**weight.bits / 3)
    if isinstance(weight, Nested):
        grids = {of: getattr(weight, of) / 32 for of in ("scale_low", "scale_step")}
        return replace(weight, **grids)
    if isinstance(weight, WithOutliers):
        return replace(weight, base=scaled(weight.base), values=weight.values / 9)
    if hasattr(weight, "base"):
        return replace(weight, base=scaled(weight.base), B=weight.B / 9, A=weight.A / 9)
    if hasattr(weight, "mask"):
        return replace(weight, values=scaled(weight.values))
    return replace(weight, values=weight.values / 9)  # type: ignore[call-arg, union-attr]


def weights_of(make_weight: Make, *kind: object) -> dict[str, CompressedWeight]:
    return {name: scaled(make_weight(SHAPES[name.split(".")[1]], *kind)) for name in LINEARS}


def public(kernels: KernelCode) -> str:
    """A module whose functions can be called."""
    text = with_kernels("module {\n}\n", [kernels])
    return text.replace("func.func private", "func.func")


class Case:
    """One block, its compiled kernel, and the library's layer with the same weights in float64."""

    def __init__(
        self,
        weights: dict[str, CompressedWeight],
        kernels: Callable[[BlockFormat], KernelCode],
        storage: Callable[[WeightFormat], KernelStorage],
        load: Load,
        window: int | None = None,
        inputs: InputFormat | None = None,
        kept: CacheFormat | None = None,
    ) -> None:
        """kernels: of the block   storage: of its linears   load: a module's text
        kept: how keys and values are
        """
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        config = llama.LlamaConfig(
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=WIDTH,
        )
        config._attn_implementation = "eager"
        formats = {name: replace(format_of(w), inputs=inputs) for name, w in weights.items()}
        heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, window, WIDTH**-0.5, kept)
        self.block = BlockFormat(HIDDEN, heads, config.rms_norm_eps, formats)
        self.module = load(public(kernels(self.block)))
        self.layer, self.window = llama.LlamaDecoderLayer(config, 0).eval().double(), window
        self.rotary = llama.LlamaRotaryEmbedding(config)
        stored: dict[str, Tensor] = {}
        for name in NORMS:
            values = 1 + 0.1 * torch.randn(HIDDEN)
            self.layer.get_parameter(name).data = values.double()
            stored[name] = values
        for name, weight in weights.items():
            linear = self.layer.get_submodule(name)
            linear.weight.data = weight.dequantize().double()
            if inputs:
                linear.register_forward_pre_hook(
                    lambda _, given: inputs.rounded(given[0].float()).double()
                )
            packed = storage(formats[name]).pack(weight)
            stored |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        names = self.block.parameters(storage)
        self.stored = [stored[name] for name in names]
        self.caches, self.bits = torch.randn(2, 1, KV_HEADS, LONGEST, WIDTH), kept and kept.bits

    def error(self, position: int) -> float:
        """Of the block's result and of what it writes into the caches, at one position."""
        hidden = torch.randn(1, 1, HIDDEN)
        cos, sin = self.rotary(hidden.double(), torch.tensor([[position]]))
        low = 0 if self.window is None else max(0, position - self.window + 1)
        past = Past(*_read(self.caches, self.bits)[..., :position, :], low, self.bits)
        with torch.no_grad():
            expected = self.layer(
                hidden.double(), past_key_values=past, position_embeddings=(cos, sin)
            )
        given = [hidden, cos.float(), sin.float(), torch.tensor([position])]
        arguments = [*given, *(_stored(cache, self.bits) for cache in self.caches), *self.stored]
        found, *caches = arm.with_caches(self.module, self.block.function, arguments, 4)
        errors = [relative_error(found, expected.float())]
        for written, cache, new in zip(caches, self.caches, (past.key, past.value), strict=True):
            wanted = _read(cache, self.bits)
            wanted[:, :, position] = new[:, :, 0]
            errors.append(relative_error(_numbers(written, cache.shape, self.bits), wanted))
        return max(errors)


def _read(cache: Tensor, bits: int | None) -> Tensor:
    """What attention reads of a cache, in float64."""
    return oracle.rounded(cache, bits) if bits else cache.double()


def _stored(cache: Tensor, bits: int | None) -> Tensor:
    """A cache [1, heads, positions, width] as a module takes it."""
    if not bits:
        return cache.clone()
    _, heads, positions, width = cache.shape
    words = oracle.planes(cache[0], bits).view(torch.float32)
    return words.view(1, heads, positions, width * bits // 32 + 1)


def _numbers(stored: Tensor, shape: Sequence[int], bits: int | None) -> Tensor:
    """The inverse."""
    if not bits:
        return stored.double()
    _, heads, positions, width = shape
    stored = stored.contiguous().view(torch.uint8)
    return oracle.from_planes(stored, (heads, positions, width), bits)[None]


class Past:
    """The cache of the library's layer: earlier positions from `low` on, and the new one."""

    def __init__(self, keys: Tensor, values: Tensor, low: int, bits: int | None) -> None:
        self.keys, self.values, self.low, self.bits = keys, values, low, bits

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        key, value = self.key, self.value = _read(key, self.bits), _read(value, self.bits)
        return (
            torch.cat([self.keys, key], 2)[:, :, self.low :],
            torch.cat([self.values, value], 2)[:, :, self.low :],
        )


def turned(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [1, T, heads width] with their rotation.  -> [1, heads, T, width], float64"""
    rows = x.double().view(1, x.shape[1], heads, -1).transpose(1, 2)
    low, high = rows.chunk(2, dim=-1)
    return rows * cos.double() + torch.cat([-high, low], -1) * sin.double()


def check_attention(
    attention: AttentionFormat, start: int, kernels: KernelCode, load: Load
) -> None:
    """Compare a kernel's result and caches with float64.  start: the first position"""
    torch.manual_seed(0)
    sizes, tokens = attention.heads, attention.tokens
    heads, kv_heads, width, longest = sizes.heads, sizes.kv_heads, sizes.width, sizes.cache_length

    q = torch.randn(1, tokens, heads * width) * 3
    k, v = torch.randn(2, 1, tokens, kv_heads * width)
    positions = torch.arange(start, start + tokens)
    angles = positions[:, None] * torch.rand(width // 2)
    cos, sin = (
        f(torch.cat([angles, angles], 1))[None].contiguous() for f in (torch.cos, torch.sin)
    )
    keys, values = torch.randn(2, 1, kv_heads, longest, width)
    bits = sizes.kept and sizes.kept.bits
    stored = [_stored(cache, bits) for cache in (keys, values)]
    arguments = [q, k, v, cos, sin, positions, *stored]
    found, *caches = arm.with_caches(load(public(kernels)), attention.function, arguments, 6)

    keys[:, :, start : start + tokens] = turned(k, kv_heads, cos, sin).float()
    values[:, :, start : start + tokens] = v.view(1, tokens, kv_heads, width).transpose(1, 2)
    keys, values = _read(keys, bits), _read(values, bits)
    # The last bit of a rotated key decides which of two codes a number near their middle gets.
    off = (_numbers(caches[0], keys.shape, bits) - keys).abs() / keys.abs().max()
    assert bool((off < 1e-6).double().mean() > (0.999 if bits else 1 - 1e-9))
    assert float(off.max()) < (2 / 2**bits if bits else 1e-6)
    keys = _numbers(caches[0], keys.shape, bits) if bits else keys
    assert relative_error(_numbers(caches[1], values.shape, bits), values) < (
        1e-7 if bits else 1e-9
    )
    distance = positions[:, None] - torch.arange(longest)
    seen = (distance >= 0) & (distance < (sizes.window or longest))
    shared = heads // kv_heads
    all_keys = keys.double().repeat_interleave(shared, 1)
    scores = turned(q, heads, cos, sin) @ all_keys.transpose(2, 3) * width**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = weights @ values.double().repeat_interleave(shared, 1)
    assert relative_error(found, expected.transpose(1, 2).reshape(found.shape)) < 2e-6
