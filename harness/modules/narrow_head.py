"""What of a model no method compresses, as modules store it: as narrow as its numbers allow.

Most models are published in half precision, some in 8 bits, and run in float32.  A head or an
embedding whose numbers a narrower format holds exactly is stored in it, in dense modules as in
compressed ones: every number is what it was, and a step reads a half or a quarter of the bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.models.model_config import DTYPES
from trinity.lowering.targets.choose import storage_of
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import Dense, Quantized, format_of

GROUP, LARGEST = 32, 127  # of 8-bit tensors as GGUF publishes them (Q8_0)


@dataclass(frozen=True, eq=False)
class Outside:
    """Layers outside the blocks in narrower formats, by name; one or none of each."""

    heads: dict[str, Dense | Quantized]
    tables: dict[str, Dense | Quantized]


def outside_of(checkpoint: Checkpoint, target: Target) -> Outside:
    """Of a checkpoint on a target; empty where the target has no kernel for such a head."""
    if target.kernels is None or DTYPES[checkpoint.dtype] != torch.float32:
        return Outside({}, {})
    model = checkpoint.model_outside()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    heads, tables = {}, {}
    if isinstance(head, nn.Linear) and (narrow := narrowed(head.weight.detach())):
        if storage_of(format_of(narrow), target).path == "compiled":
            return Outside({}, {})
        heads[names[id(head)]] = narrow
    # Subclasses compute more than a row of their table.
    if type(table) is nn.Embedding and (narrow := narrowed(table.weight.detach())):
        tables[names[id(table)]] = narrow
    return Outside(heads, tables)


def narrowed(values: Tensor) -> Dense | Quantized | None:
    """The narrowest format that holds every number of a float32 matrix exactly, or None."""
    if (codes := _eight_bits(values)) is not None:
        return codes
    for dtype in (torch.bfloat16, torch.float16):
        half = values.to(dtype)
        if torch.equal(half.to(values.dtype), values):
            return Dense(half)
    return None


def _eight_bits(values: Tensor) -> Quantized | None:
    """Codes with a float16 scale for 32 inputs, whose largest is 127, if they are the values."""
    out, d_in = values.shape
    if d_in % GROUP:
        return None
    groups = values.view(out, -1, GROUP)
    scale = (groups.abs().amax(-1) / LARGEST).half()
    scale[scale == 0] = 1.0  # a group of zeros, or of numbers too small for any float16 scale
    if not scale.isfinite().all():
        return None
    codes = (groups / scale.float()[..., None]).round().to(torch.int8).view(out, d_in)
    found = Quantized(codes, scale, None, bits=8)
    return found if torch.equal(found.dequantize(), values) else None
