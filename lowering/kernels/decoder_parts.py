"""Parts of a decoder that a kernel may compute whole: their sizes, formats, functions and names.

What a target's kernel needs of them beside this, such as sizes that fit its vectors, it says
itself (`FusedKernel.refusal`).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trinity.lowering.mlir.builder import MLIR_TYPES
from trinity.lowering.weight_storage import WeightStorage
from trinity.methods.formats import CacheFormat, WeightFormat
from trinity.methods.formats.caches import SHARED_BYTES

BLOCK, ATTENTION = "packed_block", "packed_attention"  # operators
QKVO = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LINEARS = (*QKVO, *MLP)
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
Arrays = dict[str, tuple[tuple[int, ...], str]]
"""Shape and element of a function's arguments, by name."""


@dataclass(frozen=True)
class Heads:
    """Sizes of an attention.

    window: positions that a token sees, its own included; None for all   scaling: of scores
    kept: how keys and values are; None as floats
    """

    heads: int
    kv_heads: int
    width: int
    cache_length: int
    window: int | None
    scaling: float
    kept: CacheFormat | None = None

    @property
    def cache(self) -> tuple[int, int, int, int]:
        """Shape of the keys, and of the values, in float32 or words as large."""
        return (1, self.kv_heads, self.cache_length, cache_row(self.width, self.kept))


def cache_row(width: int, kept: CacheFormat | None) -> int:
    """Words of 32 bits that one position takes of a head.

    Codes, scales and minima are counted by position, and need not lie so: what is where in these
    bytes is a kernel's own affair.  They are words that pass for float32, because IREE takes no
    argument of signed bytes that a step writes.
    """
    return width if kept is None else (width * kept.bits // 8 + SHARED_BYTES) // 4


@dataclass(frozen=True)
class AttentionFormat:
    """All that an attention's kernel depends on.  tokens: T, at consecutive positions"""

    heads: Heads
    tokens: int

    @property
    def function(self) -> str:
        """The name of its function, equal only for equal formats."""
        return f"attention_{self.tokens}_{_digest(self)}"

    def activations(self) -> Arrays:
        """What the function takes."""
        sizes, tokens = self.heads, self.tokens
        return {
            "q": ((1, tokens, sizes.heads * sizes.width), "f32"),
            "k": ((1, tokens, sizes.kv_heads * sizes.width), "f32"),
            "v": ((1, tokens, sizes.kv_heads * sizes.width), "f32"),
            "cos": ((1, tokens, sizes.width), "f32"),
            "sin": ((1, tokens, sizes.width), "f32"),
            "position": ((tokens,), "i64"),
            "keys": (sizes.cache, "f32"),
            "values": (sizes.cache, "f32"),
        }


@dataclass(frozen=True)
class BlockFormat:
    """All that a block's kernel for one token depends on.

    hidden: width of the block's input and output   epsilon: of its norms
    linears: formats by `LINEARS`   biases: of those that have one
    """

    hidden: int
    heads: Heads
    epsilon: float
    linears: Mapping[str, WeightFormat]
    biases: tuple[str, ...] = ()

    @property
    def function(self) -> str:
        """The name of its function, equal only for equal blocks."""
        return f"block_{self.hidden}_{_digest(self)}"

    def activations(self) -> Arrays:
        """What the function takes before any parameter."""
        width, cache = self.heads.width, self.heads.cache
        return {
            "hidden": ((1, 1, self.hidden), "f32"),
            "cos": ((1, 1, width), "f32"),
            "sin": ((1, 1, width), "f32"),
            "position": ((1,), "i64"),
            "keys": (cache, "f32"),
            "values": (cache, "f32"),
        }

    def parameters(self, storage: Callable[[WeightFormat], WeightStorage]) -> Arrays:
        """What follows: norms, biases, and every linear's stored tensors.

        Their names are those below the block's.
        """
        found: Arrays = {name: ((self.hidden,), "f32") for name in NORMS}
        for name, weight_format in self.linears.items():
            if name in self.biases:
                found[f"{name}.bias"] = ((weight_format.shape[0],), "f32")
            for key, (shape, dtype) in storage(weight_format).shapes().items():
                found[f"{name}.{key}"] = (shape, MLIR_TYPES[dtype])
        return found


def _digest(of: AttentionFormat | BlockFormat) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()[:12]
