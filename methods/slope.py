"""SLoPe: reads N:M-sparse pretrained checkpoints (Mozaffari et al., arXiv:2405.16325).

The released layout is an ordinary state dict.  Sparse weights are stored dense, with zeros, as
`<layer>.weight [out, in]`, without a mask; lazy adapters are `<layer>.lora_left [in, r]` and
`<layer>.lora_right [r, out]`, and the layer computes (section 2.2 of the paper, as its code has it)

    y = x W^T + b + (x lora_left) lora_right / r

Differs from the code: a weight of which only some groups obey the pattern is an error, where the
code would prune it again and say nothing; of several zeros in a group, the lower column counts as
kept; the adapter's 1/r is multiplied into A once, in float32.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight, Dense, Pattern, Sparse
from trinity.methods.options import PatternOption
from trinity.methods.tensors import nm_mask

WEIGHT, LEFT, RIGHT = "weight", "lora_left", "lora_right"
# A trained dense weight has next to no exact zeros; an N:M weight has a sixteenth at the least,
# also where it is damaged or of another N:M than the one it is read with.
MEANT_SPARSE = 0.05


class SlopeConfig(MethodConfig):
    """Defaults are those of the accuracy code.

    pattern: N:M along the inputs, of every sparse layer that `layers` does not name
    layers: glob over layer names -> another pattern, or 'dense' for a layer that is left alone; the
        last glob that fits counts
    path: 'training' adds (x L) R / r; 'merged' is the inference path that prunes L^T like the
        weight it is stacked on, and has no 1/r
    """

    pattern: PatternOption = NM(2, 4)
    layers: dict[str, PatternOption | Literal["dense"]] = Field(default={})
    path: Literal["training", "merged"] = "training"

    @field_validator("pattern")
    @classmethod
    def _is_nm(cls, pattern: Pattern) -> Pattern:
        if not isinstance(pattern, NM):
            msg = f"SLoPe trains N:M weights, not {pattern}"
            raise ValueError(msg)
        return pattern


def obeying(W: Tensor, pattern: NM) -> Tensor:
    """Which groups have at most `n` entries that are not zero.  W: [out, in] -> bool [out, in/m]"""
    out, d_in = W.shape
    return (W.view(out, d_in // pattern.m, pattern.m) != 0).sum(-1) <= pattern.n


def sparse_weight(layer: str, W: Tensor, pattern: NM) -> Sparse | None:
    """The weight with the mask that its zeros stand for, or None if it was trained dense.

    W: [out, in]; ConfigError if it is neither, naming the first group that breaks the pattern.
    """
    if W.shape[1] % pattern.m:
        return None
    good = obeying(W, pattern)
    if not bool(good.all()):
        zeros = float((W == 0).float().mean())
        if zeros < MEANT_SPARSE:
            return None
        row, group = (int(i) for i in (~good).nonzero()[0])
        msg = (
            f"slope: {layer}: {100 * zeros:.3g}% of its entries are zero, but {int((~good).sum())} "
            f"groups are not {pattern}: row {row}, inputs {group * pattern.m}.."
            f"{(group + 1) * pattern.m - 1} keep more. Is the pattern another one, or the file "
            f"damaged? `layers` sets the pattern of a layer, or 'dense'."
        )
        raise ConfigError(msg)
    # Any mask that holds all nonzero entries stands for the same weight.
    return Sparse(Dense(W), nm_mask(W.abs().float(), pattern), pattern)


def adapter(
    layer: str, left: Tensor, right: Tensor, pattern: NM, config: SlopeConfig
) -> tuple[Tensor, Tensor]:
    """(B, A) such that the layer's weight is W + B A.

    left: [in, r]  right: [r, out]  ->  B: [out, r]  A: [r, in], of the type of `left`
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        msg = (
            f"slope: {layer}: lora_left {list(left.shape)} and lora_right {list(right.shape)} do "
            f"not fit each other; expected [in, r] and [r, out]."
        )
        raise ConfigError(msg)
    A = left.T.float()
    if config.path == "training":
        A = A / left.shape[1]
    else:
        A = A * nm_mask(A.abs().contiguous(), pattern)
    return right.T.contiguous(), A.to(left.dtype).contiguous()


def load(tensors: Mapping[str, Tensor], config: SlopeConfig) -> dict[str, CompressedWeight]:
    """Every layer that is sparse or has adapters; ConfigError if there is none.

    A matrix that was trained dense and has no adapters (embeddings, heads, the first layer) is not
    this source's affair, and is not in the result.
    """
    found: dict[str, CompressedWeight] = {}
    for name, W in tensors.items():
        layer, _, part = name.rpartition(".")
        if part != WEIGHT or W.ndim != 2 or not W.is_floating_point():
            continue
        if weight := _weight(layer, W, tensors, config):
            found[layer] = weight
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if part in (LEFT, RIGHT) and layer not in found:
            msg = f"slope: {layer}: has {part} but no {WEIGHT} of floats. The file is incomplete."
            raise ConfigError(msg)
    if not any(_is_sparse(weight) for weight in found.values()):
        msg = (
            f"slope: none of the {len(tensors)} tensors is a weight that obeys {config.pattern}. "
            f"Is this a dense checkpoint, or is `pattern` another one?"
        )
        raise ConfigError(msg)
    return found


def _weight(
    layer: str, W: Tensor, tensors: Mapping[str, Tensor], config: SlopeConfig
) -> CompressedWeight | None:
    """One layer, or None if it is dense without adapters; ConfigError names it."""
    pattern, factors = _pattern_of(layer, config), _factors(layer, tensors)
    try:
        base = None if pattern is None else sparse_weight(layer, W, pattern)
        if factors is None:
            return base
        B, A = adapter(layer, *factors, pattern or _nm(config), config)
        return Adapted(base or Dense(W), B, A)
    except ConfigError as error:
        if str(error).startswith("slope:"):
            raise
        msg = f"slope: {layer}: {error}"
        raise ConfigError(msg) from error


def _pattern_of(layer: str, config: SlopeConfig) -> NM | None:
    """The pattern that a layer must obey; None for 'dense'."""
    named = [pattern for glob, pattern in config.layers.items() if fnmatchcase(layer, glob)]
    pattern = named[-1] if named else config.pattern
    if pattern == "dense":
        return None
    if not isinstance(pattern, NM):
        msg = f"slope: {layer}: SLoPe trains N:M weights, not {pattern}."
        raise ConfigError(msg)
    return pattern


def _nm(config: SlopeConfig) -> NM:
    assert isinstance(config.pattern, NM)  # its validator says so
    return config.pattern


def _factors(layer: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """(lora_left, lora_right), or None: absent keys mean that the adapter was never added."""
    left, right = tensors.get(f"{layer}.{LEFT}"), tensors.get(f"{layer}.{RIGHT}")
    if left is not None and right is not None:
        return left, right
    if left is None and right is None:
        return None
    here, absent = (RIGHT, LEFT) if left is None else (LEFT, RIGHT)
    msg = f"slope: {layer}: has {here} but no {absent}. The checkpoint is incomplete."
    raise ConfigError(msg)


def _is_sparse(weight: CompressedWeight) -> bool:
    return isinstance(weight.base if isinstance(weight, Adapted) else weight, Sparse)


class _Slope:
    """A source of N:M weights and lazy adapters that SLoPe's training left in a checkpoint."""

    name = "slope"
    paper = "arXiv:2405.16325"
    config = SlopeConfig
    parts = (WEIGHT, LEFT, RIGHT)

    def load(
        self, tensors: Mapping[str, Tensor], config: SlopeConfig
    ) -> Mapping[str, CompressedWeight]:
        return load(tensors, config)


SLOPE = _Slope()
