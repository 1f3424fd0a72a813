"""Random weights of every format, and random two-block decoders of every family."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.methods.samples import random_nested
from trinity.methods.formats import (
    NM,
    Adapted,
    Coded,
    CompressedWeight,
    Dense,
    Nested,
    Pattern,
    Quantized,
    RowCoded,
    Sparse,
    Tiles,
    Values,
    WithOutliers,
    parse_pattern,
    tiles,
)
from trinity.methods.formats.adapter import Factor
from trinity.methods.formats.level_tables import TABLES, largest, levels, nearest_codes
from trinity.methods.formats.nested_grid import SECOND
from trinity.methods.formats.scales import EIGHT_BITS

FLOAT8 = {name: dtype for dtype, name in EIGHT_BITS.items()}


def random_weight(
    shape: tuple[int, int],
    kind: str,
    pattern: str | None = None,
    rank: int = 0,
    scale_dtype: torch.dtype = torch.float32,
    outliers: int = 0,
) -> CompressedWeight:
    """kind: 'float16' and the like, or 'int4 tensor', 'int3 channel asymmetric', 'int4 group
    16', or of a table: 'nf4 group 64', 'e2m1 group 32 e8m0', 'e2m1 group 16 e4m3 outer',
    of a row's own 2^3: 'rows of 3', or with scales that are codes: 'nested 3 group 16'.
    """
    out, d_in = shape
    base: Dense | Quantized | Coded | RowCoded | Nested | Sparse | WithOutliers
    if kind.startswith("int"):
        base = random_codes(shape, kind.split(), scale_dtype)
    elif kind.startswith("rows of"):
        bits = int(kind.split()[2])
        levels_of = torch.randn(out, 2**bits).to(scale_dtype)
        base = RowCoded(torch.randint(0, 2**bits, shape).to(torch.uint8), levels_of)
    elif kind.startswith("nested"):
        _, bits, *scales = kind.split()
        base = random_nested(out, d_in, int(bits), scale_shape(shape, scales)[1])
        base = replace(base, **{name: getattr(base, name).to(scale_dtype) for name in SECOND})
    elif kind.split()[0] in TABLES:
        base = random_levels(shape, kind.split(), scale_dtype)
    else:
        base = Dense(torch.randn(shape).to(getattr(torch, kind)))
    if pattern:
        parsed = parse_pattern(pattern)
        base = Sparse(base, random_mask(shape, parsed), parsed)
    if outliers:
        base = random_outliers(base, outliers, scale_dtype)
    if rank:
        return Adapted(base, torch.randn(out, rank).half(), torch.randn(rank, d_in).half())
    return base


def random_outliers(base: Values | Sparse, room: int, dtype: torch.dtype) -> WithOutliers:
    """Some entries of every row, and in a row none."""
    out, d_in = base.shape
    columns = torch.rand(out, d_in).argsort(-1)[:, :room]
    values = torch.randn(columns.shape) * (torch.rand(columns.shape) < 0.7)
    values[0] = 0
    return WithOutliers(base, columns, values.to(dtype))


def random_codes(shape: tuple[int, int], words: list[str], scale_dtype: torch.dtype) -> Quantized:
    """Random codes, every one of them possible, with random scales and zero points."""
    bits, asymmetric = int(words[0].removeprefix("int")), "asymmetric" in words
    rows = scale_shape(shape, words[1:])
    scale = (torch.rand(rows) + 0.5).to(scale_dtype)
    codes = torch.randint(0, 2**bits, shape)
    if asymmetric:
        zero_point = torch.randint(0, 2**bits, rows).to(torch.uint8)
        return Quantized(codes.to(torch.uint8), scale, zero_point, bits)
    return Quantized((codes - 2 ** (bits - 1)).to(torch.int8), scale, None, bits)


def random_levels(shape: tuple[int, int], words: list[str], scale_dtype: torch.dtype) -> Coded:
    """Random codes of a table, every one of them possible, with random scales.

    -0 is left out: a mask that is not stored comes back as what is not zero.
    """
    table, *scales = words
    known = nearest_codes(levels(table)[levels(table).isfinite()], table).unique()
    codes = known[torch.randint(0, len(known), shape)].to(torch.uint8)
    scale = torch.rand(scale_shape(shape, scales)) + 0.5
    short = next((word for word in scales if word in FLOAT8), None)
    if short == "e8m0":
        scale = torch.exp2((10 * scale).round() - 12)
    outer = torch.rand(1, 1) + 0.1 if "outer" in scales else None
    return Coded(codes, scale.to(FLOAT8[short] if short else scale_dtype), table, outer)


def scale_shape(shape: tuple[int, int], words: list[str]) -> tuple[int, int]:
    """Of 'tensor', 'channel' or 'group 16'."""
    out, d_in = shape
    groups = {"tensor": (1, 1), "channel": (out, 1)}
    return groups[words[0]] if words[0] in groups else (out, d_in // int(words[1]))


def random_mask(shape: tuple[int, int], pattern: Pattern) -> Tensor:
    """A random mask that obeys a pattern.  -> bool [out, in]"""
    out, d_in = shape
    if isinstance(pattern, NM):
        places = torch.rand(out, d_in // pattern.m, pattern.m).argsort(-1)
        return (places < pattern.n).view(shape)
    if isinstance(pattern, Tiles):
        rows, columns = tiles.grid(shape, pattern.size)
        sparse = torch.zeros(rows * columns)
        sparse[: round(pattern.share * rows * columns)] = 1
        dense = tiles.expanded(sparse.view(rows, columns) == 0, shape, pattern.size)
        return dense | random_mask(shape, NM(2, 4))
    return torch.rand(shape) >= pattern.sparsity


FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_inner": 48},
    "gpt_neox": {},
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "stablelm": {"use_parallel_residual": True, "qk_layernorm": True},
    "olmo": {"clip_qkv": 1.5},
    "olmo2": {},
    "cohere": {"use_qk_norm": True},
    "gemma": {"head_dim": 16},
    "granite": {"attention_multiplier": 0.5, "residual_multiplier": 0.7},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 0]},
    "falcon": {"ffn_hidden_size": 48},
}
# Their configurations call sizes otherwise.
OTHER_KEYS = ("opt", "gpt2", "gptj", "falcon")


def random_decoder(family: str, **sizes: int) -> nn.Module:
    """A two-block model of a family with weights large enough that every block shows in the
    logits.  sizes: of the configuration, other than the usual ones
    """
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {
        "hidden_size": 32,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family not in OTHER_KEYS:
        common["intermediate_size"] = 48
    if family not in (*OTHER_KEYS, "gpt_neox"):
        common["num_key_value_heads"] = 2
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**common, **FAMILIES[family], **sizes})
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.1)
    return model


def block_linears(model: nn.Module, block: int) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of one block, by name."""
    found = {}
    for name, layer in model.named_modules():
        if f".{block}." not in name or not (isinstance(layer, nn.Linear) or hasattr(layer, "nf")):
            continue
        rows, columns = layer.weight.shape
        found[name] = (columns, rows) if hasattr(layer, "nf") else (rows, columns)
    return found


@pytest.fixture
def make_weight() -> Callable[..., CompressedWeight]:
    """`random_weight`, always of the same seed."""
    torch.manual_seed(1)
    return random_weight


def packed_factors(name: str, shape: tuple[int, int]) -> Factor:
    """A random factor: 'float16', 'int4 group 16' and the like, with '2:4 ' in front if pruned."""
    kind = name.removeprefix("2:4 ")
    found = random_weight(shape, kind, "2:4" if name.startswith("2:4") else None, 0, torch.float16)
    if isinstance(found, Dense):
        return found.values
    assert isinstance(found, (Quantized, Coded, Sparse))
    return found


@pytest.fixture
def make_packed_adapter() -> Callable[..., CompressedWeight]:
    """A weight with an adapter whose factors are packed, by the words for weight, B and A."""
    torch.manual_seed(1)

    def make(shape: tuple[int, int], rank: int, kind: str, high: str, low: str) -> CompressedWeight:
        base = random_weight(shape, kind)
        assert not isinstance(base, Adapted)
        (out, d_in) = shape
        return Adapted(base, packed_factors(high, (out, rank)), packed_factors(low, (rank, d_in)))

    return make


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., nn.Module]:
    """`random_decoder`."""
    return random_decoder


@pytest.fixture(scope="session")
def compress_block() -> Callable[..., dict[str, CompressedWeight]]:
    """Random weights of one kind, scaled like weights, for the linears of one block."""

    def compress(model: nn.Module, block: int, *kind: object) -> dict[str, CompressedWeight]:
        torch.manual_seed(2)
        linears = block_linears(model, block)
        return {name: small(random_weight(shape, *kind)) for name, shape in linears.items()}  # type: ignore[arg-type]

    return compress


def small(weight: CompressedWeight) -> CompressedWeight:
    """The same weight with entries of about 0.1, so that activations stay in range."""
    if isinstance(weight, Adapted):
        base = small(weight.base)
        assert not isinstance(base, Adapted)
        return Adapted(base, weight.B * 0.1, weight.A * 0.1)
    if isinstance(weight, WithOutliers):
        base = small(weight.base)
        assert not isinstance(base, Adapted | WithOutliers)
        return WithOutliers(base, weight.columns, weight.values * 0.1)
    if isinstance(weight, Sparse):
        values = small(weight.values)
        assert isinstance(values, Dense | Quantized | Coded)
        return Sparse(values, weight.mask, weight.pattern)
    if isinstance(weight, RowCoded):
        return replace(weight, levels=weight.levels * 0.1)
    if isinstance(weight, Nested):
        grids = {of: getattr(weight, of) * 0.05 for of in ("scale_low", "scale_step")}
        return replace(weight, **grids)
    if isinstance(weight, Coded):
        by, dtype = 0.2 / largest(weight.table), weight.scale.dtype
        if weight.outer_scale is not None:
            return replace(weight, outer_scale=weight.outer_scale * by)
        return replace(weight, scale=(weight.scale.float() * by).to(dtype))
    if isinstance(weight, Quantized):
        scale = weight.scale * (0.2 / 2**weight.bits)
        return Quantized(weight.codes, scale, weight.zero_point, weight.bits)
    return Dense(weight.values * 0.1)
