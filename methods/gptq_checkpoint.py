"""The GPTQ checkpoint format, as AutoGPTQ and GPTQModel write it: reading and writing.

| tensor  | shape, type                      | holds                                              |
|---------|----------------------------------|----------------------------------------------------|
| qweight | [in * bits / 32, out], int32     | codes, a stream of bits down each output's column  |
| qzeros  | [groups, out * bits / 32], int32 | zero points, a stream of bits along each group     |
| scales  | [groups, out], float             | step of every group                                |
| g_idx   | [in], int32                      | group of every input                               |

The weight is scales * (code - zero point).  Version `gptq` stores each zero point less one,
`gptq_v2` as it is.  A zero point of 0 therefore wraps in `gptq`, which damages the zero points
beside it in ways that differ by writer: it is read where the writer is known to have borrowed from
them (GPTQModel), refused elsewhere, and never written.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trinity.methods.contract import MethodConfig, StoredTensors
from trinity.methods.errors import ConfigError, TrinityError, UnsupportedError
from trinity.methods.formats import CompressedWeight, Quantized, Sparse
from trinity.methods.formats.quantized import BITS
from trinity.methods.gptq_settings import LayerSettings, Version, read_settings

WORD = 32
PARTS = ("qweight", "qzeros", "scales", "g_idx")
ENOUGH = 32  # equal zero points that cannot be a coincidence


class GptqCheckpointConfig(MethodConfig):
    """checkpoint_format: for a folder that does not say it; None is what it says, else 'gptq'."""

    checkpoint_format: Version | None = None


def load(tensors: StoredTensors, option: Version | None) -> dict[str, Quantized]:
    """Every quantized linear among a checkpoint's tensors, by the name of its module.

    option: the version, where the folder's settings do not name it; ConfigError if they differ
    """
    settings = read_settings(tensors.settings)
    if None not in (option, settings.version) and option != settings.version:
        msg = (
            f"gptq-checkpoint: option checkpoint_format is {option}, but {settings.base.where} "
            f"says {settings.version}. Leave the option out, or correct the file."
        )
        raise ConfigError(msg)
    version = settings.version or option or "gptq"
    names = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    if not names:
        msg = (
            "gptq-checkpoint: no tensor is called '<layer>.qweight'; this is no GPTQ checkpoint, "
            "or it is another of its formats (marlin, awq)."
        )
        raise ConfigError(msg)
    layers = {}
    for name in names:
        if f"{name}.weight" in tensors:
            msg = (
                f"gptq-checkpoint: holds both {name}.qweight and {name}.weight, and only one of "
                f"them can be the layer's. Remove the file or the tensor that is left over."
            )
            raise ConfigError(msg)
        said = settings.of_layer(name)
        parts = {part: tensors[key] for part in PARTS if (key := f"{name}.{part}") in tensors}
        try:
            layers[name] = read_layer(parts, version, said)
        except TrinityError as error:
            raise type(error)(f"{name}: {error}") from error
    return layers


def read_layer(
    parts: Mapping[str, Tensor], version: Version, said: LayerSettings | None = None
) -> Quantized:
    """One linear from its tensors, named as in the table above; symmetric if its zero points are.

    The number of bits is what the shapes say; codes and scales are kept bit for bit.
    said: what the folder says of the layer; ConfigError where the tensors are something else
    """
    said = said or LayerSettings()
    missing = sorted({"qweight", "qzeros", "scales"} - set(parts))
    if missing:
        msg = f"gptq-checkpoint: {', '.join(missing)} is missing; found {sorted(parts)}."
        raise ConfigError(msg)
    bits, d_in = _sizes(parts)
    _check_sizes(parts, bits, d_in, said)
    zero = _zero_points(parts["qzeros"], bits, parts["scales"].shape[1], version, said)
    codes = unpack_stream(parts["qweight"], bits, d_in).T.contiguous()
    scale, index = _scale(parts["scales"]), _index(parts, d_in, said)
    half = 2 ** (bits - 1)
    if bool((zero == half).all()):
        signed = (codes.to(torch.int16) - half).to(torch.int8)
        return Quantized(signed, scale, None, bits, index)
    if said.sym:
        other = int(zero[zero != half][0])
        raise said.contradiction("sym", f"qzeros hold a zero point of {other}, not only {half}")
    return Quantized(codes, scale, zero.T.contiguous(), bits, index)


def write_layer(weight: CompressedWeight, version: Version) -> dict[str, Tensor]:
    """The tensors of a quantized linear; UnsupportedError if the format cannot hold it exactly.

    A pruned entry becomes the code of zero: the values are kept, the mask is not stored.
    """
    base = weight.values if isinstance(weight, Sparse) else weight
    if not isinstance(base, Quantized):
        msg = f"the GPTQ format holds quantized weights only, not {type(weight).__name__.lower()}."
        raise UnsupportedError(msg)
    out, d_in = base.shape
    if d_in * base.bits % WORD or out * base.bits % WORD:
        msg = (
            f"the GPTQ format fills words of {WORD} bits, and {base.bits} bits do not in a layer "
            f"[{out}, {d_in}]."
        )
        raise UnsupportedError(msg)
    steps = _steps(base)
    scale = steps.half()
    if not torch.equal(scale.double(), steps):
        msg = (
            "the GPTQ format stores scales as float16, and these do not fit exactly: quantize "
            "with `scale_dtype: float16`."
        )
        raise UnsupportedError(msg)
    codes, zero = _unsigned(base)
    if version == "gptq" and bool((zero == 0).any()):
        msg = (
            "a zero point is 0, which version `gptq` stores less one and its readers do not agree "
            "on. Export as gptq_v2, or quantize symmetrically."
        )
        raise UnsupportedError(msg)
    if isinstance(weight, Sparse):
        codes = torch.where(weight.mask, codes, base.by_input(zero).expand(codes.shape))
    groups = base.scale.shape[1]
    index = base.group_index
    if index is None:
        places = torch.arange(d_in, dtype=torch.int32, device=codes.device)
        index = places // base.group_size
    stored = (zero - int(version == "gptq")).expand(out, groups)
    return {
        "qweight": pack_stream(codes.T, base.bits),
        "qzeros": pack_stream(stored, base.bits).T.contiguous(),
        "scales": scale.expand(out, groups).T.contiguous(),
        "g_idx": index,
    }


def pack_stream(values: Tensor, bits: int) -> Tensor:
    """Values as one stream of bits down every column, the first in the lowest bits of a word.

    values: uint8 [n, columns]  ->  int32 [n * bits / 32, columns]; 3-bit values cross words
    """
    words = torch.arange(len(values) * bits // WORD, device=values.device)
    packed = torch.zeros(len(words), values.shape[1], dtype=torch.int32, device=values.device)
    for bit in range(WORD):
        place = words * WORD + bit
        taken = values.index_select(0, place // bits) >> (place % bits).to(torch.uint8)[:, None]
        packed |= (taken & 1).to(torch.int32) << bit
    return packed


def unpack_stream(packed: Tensor, bits: int, n: int) -> Tensor:
    """Inverse of `pack_stream`.  packed: int32 [words, columns]  ->  uint8 [n, columns]"""
    values = torch.zeros(n, packed.shape[1], dtype=torch.uint8, device=packed.device)
    for bit in range(bits):
        place = torch.arange(n, device=packed.device) * bits + bit
        taken = packed.index_select(0, place // WORD) >> (place % WORD).to(torch.int32)[:, None]
        values |= (taken & 1).to(torch.uint8) << bit
    return values


def _sizes(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    """(bits, in) as the shapes say; ConfigError if they do not agree."""
    shapes = {name: list(tensor.shape) for name, tensor in parts.items()}
    if all(tensor.ndim == (1 if name == "g_idx" else 2) for name, tensor in parts.items()):
        groups, out = parts["scales"].shape
        words, columns = parts["qweight"].shape
        for bits in BITS:
            d_in = words * WORD // bits
            index = parts.get("g_idx")
            fits = [
                parts["qzeros"].shape == (groups, out * bits // WORD),
                out * bits % WORD == 0,
                columns == out,
                words * WORD == d_in * bits,
                index is None or len(index) == d_in,
            ]
            if all(fits) and not any(
                parts[name].dtype != torch.int32 for name in ("qweight", "qzeros")
            ):
                return bits, d_in
    msg = (
        f"gptq-checkpoint: {shapes} are no linear of {', '.join(map(str, BITS))} bits: expected "
        f"qweight [in * bits / 32, out] and qzeros [groups, out * bits / 32] in int32, scales "
        f"[groups, out], g_idx [in]."
    )
    raise ConfigError(msg)


def _check_sizes(parts: Mapping[str, Tensor], bits: int, d_in: int, said: LayerSettings) -> None:
    """ConfigError where the shapes are not those of the settings."""
    if said.bits not in (None, bits):
        shape = list(parts["qweight"].shape)
        raise said.contradiction("bits", f"qweight {shape} holds {bits} bits a code")
    groups = parts["scales"].shape[0]
    if said.groups(d_in) not in (None, groups):
        found = f"scales hold {groups} groups of the {d_in} inputs"
        raise said.contradiction("group_size", found)


def _zero_points(
    qzeros: Tensor, bits: int, out: int, version: Version, said: LayerSettings
) -> Tensor:
    """qzeros: int32 [groups, out * bits / 32]  ->  uint8 [groups, out]"""
    stored = unpack_stream(qzeros.T, bits, out).T
    if version == "gptq_v2":
        return stored
    half, top = 2 ** (bits - 1), 2**bits - 1
    if stored.numel() >= ENOUGH and bool((stored == half).all()):
        msg = (
            f"gptq-checkpoint: every stored zero point is {half}, the middle of {bits} bits, where "
            f"`gptq` stores {half - 1}. The file is in `gptq_v2`: set checkpoint_format to that, "
            f"in {said.where} if it says otherwise."
        )
        raise ConfigError(msg)
    if not bool((stored == top).any()):
        return stored + 1
    if not said.borrows or WORD % bits:
        msg = (
            f"gptq-checkpoint: qzeros hold {top}, which is what `gptq` makes of a zero point of 0, "
            f"and programs that write it damage the zero points beside it in different ways. Save "
            f"the checkpoint as gptq_v2 with the program that made it."
        )
        raise UnsupportedError(msg)
    ones = sum(1 << place for place in range(0, WORD, bits))
    return unpack_stream((qzeros + ones).T, bits, out).T


def _scale(scales: Tensor) -> Tensor:
    """[groups, out] -> [out, groups]; ConfigError names what no step of a grid can be."""
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        wrong = scales[~(torch.isfinite(scales) & (scales > 0))]
        msg = (
            f"gptq-checkpoint: scales hold {wrong.numel()} entries that are not positive finite "
            f"numbers, such as {float(wrong[0]):g}."
        )
        raise ConfigError(msg)
    return scales.T.contiguous()


def _index(parts: Mapping[str, Tensor], d_in: int, said: LayerSettings) -> Tensor | None:
    """The group index, or None where groups are consecutive inputs, all of one size.

    Writers that know no order leave g_idx out, or zero: an index that uses one of many groups.
    """
    index, groups = parts.get("g_idx"), parts["scales"].shape[0]
    if index is None or (groups > 1 and not bool(index.any())):
        if said.desc_act and groups > 1:
            found = "g_idx is missing or zero, so the order of the inputs is lost"
            raise said.contradiction("desc_act", found)
        if said.group_size is None and d_in % groups:
            msg = (
                f"gptq-checkpoint: scales hold {groups} groups, which do not divide the {d_in} "
                f"inputs, and neither g_idx nor a `group_size` of the folder says where they end."
            )
            raise ConfigError(msg)
        index = _consecutive(parts, d_in, said)
    elif not torch.equal(index.long(), _consecutive(parts, d_in, said).long()):
        if said.desc_act is False:
            if bool((index.diff() < 0).any()):
                raise said.contradiction("desc_act", "g_idx puts inputs into groups out of order")
            if said.group_size is not None:
                found = f"the first group of g_idx has {int((index == 0).sum())} inputs"
                raise said.contradiction("group_size", found)
        return index.to(torch.int32)
    return index.to(torch.int32) if int((index == 0).sum()) * groups != d_in else None


def _consecutive(parts: Mapping[str, Tensor], d_in: int, said: LayerSettings) -> Tensor:
    """The index of consecutive inputs in the groups that are said, or else in equal ones."""
    scales = parts["scales"]
    size = -(-d_in // scales.shape[0]) if said.group_size in (None, -1) else said.group_size
    return torch.arange(d_in, device=scales.device) // size


def _steps(base: Quantized) -> Tensor:
    """Scales, those of the inputs multiplied in.  -> [1 | out, groups], float64

    UnsupportedError where inputs of one group have different ones: the format has no place for them
    """
    steps = base.scale.double()
    if base.input_scale is None:
        return steps
    inputs, groups = base.input_scale.double(), steps.shape[1]
    index = base.group_index
    if index is None:
        index = torch.arange(len(inputs), device=inputs.device) // base.group_size
    ends = inputs.new_ones(groups)
    low, high = (
        ends.scatter_reduce(0, index.long(), inputs, kind, include_self=False)
        for kind in ("amin", "amax")
    )
    if not torch.equal(low, high):
        msg = (
            f"the GPTQ format has no scales of inputs, and those of this layer differ inside a "
            f"group, from {float(inputs.min()):g} to {float(inputs.max()):g}, so that the scales "
            f"of its groups cannot stand for them. Export as huggingface for plain floats."
        )
        raise UnsupportedError(msg)
    return steps * low


def _unsigned(base: Quantized) -> tuple[Tensor, Tensor]:
    """Codes and zero points as stored.  -> uint8 [out, in], uint8 [1 | out, groups]"""
    if base.zero_point is not None:
        return base.codes, base.zero_point
    half = 2 ** (base.bits - 1)
    codes = (base.codes.to(torch.int16) + half).to(torch.uint8)
    zero = torch.full(base.scale.shape, half, dtype=torch.uint8, device=codes.device)
    return codes, zero


class _GptqCheckpoint:
    name = "gptq-checkpoint"
    paper = "arXiv:2210.17323"
    config = GptqCheckpointConfig
    parts = PARTS

    def load(
        self, tensors: StoredTensors, config: GptqCheckpointConfig
    ) -> Mapping[str, CompressedWeight]:
        return load(tensors, config.checkpoint_format)

    def example(self) -> Mapping[str, Tensor]:
        """A checkpoint of one layer [32, 64] in groups of 32, for conformance."""
        codes = torch.randint(-8, 8, (32, 64), dtype=torch.int8)
        weight = Quantized(codes, torch.full((32, 2), 0.5), None, 4)
        return {f"fc.{part}": tensor for part, tensor in write_layer(weight, "gptq").items()}


GPTQ_CHECKPOINT = _GptqCheckpoint()
