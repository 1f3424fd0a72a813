"""The pack-quantized format of compressed-tensors, which vLLM and transformers read.

| tensor        | shape, type                     | holds                              |
|---------------|---------------------------------|------------------------------------|
| weight_packed | [out, in * bits / 32], int32    | codes plus half their range        |
| weight_scale  | [out, groups], the model's type | step of every group                |
| weight_shape  | [2], int64                      | out, in                            |

The first code is in the lowest bits of a word; the last word of a row is filled with zeros.
Readers multiply in the type of the scales, so the
scales are stored in the model's: then the weights are those that Trinity runs.

Zero points are refused: compressed-tensors 0.20.1 packs them, and makes room for unpacked ones when
transformers loads a model, which then fails.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CompressedWeight, Dense, Quantized, Sparse
from trinity.methods.gptq_checkpoint import WORD, pack_stream

BITS = (4, 8)  # that every reader of the format takes
FORMAT = "pack-quantized"
ELSEWHERE = "Export as huggingface for plain floats."


def write_layer(weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a linear; UnsupportedError if the format cannot hold it exactly.

    dtype: of the model.  A pruned entry becomes the code of zero: values are kept, not the mask
    """
    if isinstance(weight, Dense):
        return {"weight": weight.values.to(dtype)}
    base = _quantized(weight)
    scale = base.scale.to(dtype)
    if not torch.equal(scale.double(), base.scale.double()):
        said = str(dtype).removeprefix("torch.")
        msg = (
            f"the format stores scales in the model's type, {said}, and these do not fit exactly: "
            f"quantize with `scale_dtype: {said}`. {ELSEWHERE}"
        )
        raise UnsupportedError(msg)
    codes = base.codes  # int8, of which a pruned entry is 0
    if isinstance(weight, Sparse):
        codes = codes.masked_fill(~weight.mask, 0)
    stored = (codes.to(torch.int16) + 2 ** (base.bits - 1)).to(torch.uint8)
    return {
        "weight_packed": _packed(stored.T, base.bits).T.contiguous(),
        "weight_scale": scale.expand(len(codes), scale.shape[1]).contiguous(),
        "weight_shape": torch.tensor(base.shape),
    }


def scheme(weight: CompressedWeight) -> tuple[int, int | None] | None:
    """(bits, group size or None for one scale an output); None of plain floats."""
    if isinstance(weight, Dense):
        return None
    base = _quantized(weight)
    groups = base.scale.shape[1]
    return base.bits, base.group_size if groups > 1 else None


# JSON of another program, hence Any.
def section(
    schemes: Mapping[str, tuple[int, int | None] | None], others: Sequence[str]
) -> dict[str, Any]:
    """`quantization_config` of config.json.

    schemes: of every linear of the blocks   others: linears outside of them, which stay dense
    """
    layers: dict[tuple[int, int | None], list[str]] = {}
    for name, found in schemes.items():
        if found is not None:
            layers.setdefault(found, []).append(name)
    groups = {}
    for number, ((bits, size), names) in enumerate(layers.items()):
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if size is None else "group",
            "group_size": size,
            "dynamic": False,
        }
        targets = ["Linear"] if len(layers) == 1 else names
        groups[f"group_{number}"] = {"targets": targets, "weights": weights, "format": FORMAT}
    dense = [name for name, found in schemes.items() if found is None]
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*dense, *others],
    }


def _quantized(weight: CompressedWeight) -> Quantized:
    base = weight.values if isinstance(weight, Sparse) else weight
    if not isinstance(base, Quantized):
        floats = isinstance(weight, Sparse) and isinstance(base, Dense)
        what = "pruned floats" if floats else type(base).__name__.lower()
        msg = f"the format holds quantized weights without adapters, not {what}. {ELSEWHERE}"
        raise UnsupportedError(msg)
    if base.bits not in BITS:
        msg = (
            f"the format is written with {BITS[0]} or {BITS[1]} bits, not {base.bits}. {ELSEWHERE}"
        )
        raise UnsupportedError(msg)
    if base.zero_point is not None:
        msg = (
            "its zero points cannot be loaded by transformers from this format. Export as gptq_v2, "
            "or quantize symmetrically."
        )
        raise UnsupportedError(msg)
    if base.group_index is not None:
        msg = "its groups are no consecutive inputs. Export as gptq, or quantize without act_order."
        raise UnsupportedError(msg)
    if base.input_scale is not None:
        msg = f"its inputs have scales, for which the format has no place. {ELSEWHERE}"
        raise UnsupportedError(msg)
    return base


def _packed(codes: Tensor, bits: int) -> Tensor:
    """uint8 [n, columns] -> int32 [ceil(n * bits / 32), columns]"""
    missing = -len(codes) % (WORD // bits)
    filled = torch.cat([codes, codes.new_zeros(missing, codes.shape[1])])
    return pack_stream(filled, bits)
