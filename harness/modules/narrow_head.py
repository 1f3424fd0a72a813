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

ROWS = 4096  # of a matrix, looked at together: a head may be a large part of the memory
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
        parts = torch.split(values, ROWS)
        if all(torch.equal(rows.to(dtype).to(rows.dtype), rows) for rows in parts):
            return Dense(values.to(dtype))
    return None


def _eight_bits(values: Tensor) -> Quantized | None:
    """Codes with a float16 scale for 32 inputs, whose largest is 127, if they are the values."""
    if values.shape[1] % GROUP:
        return None
    codes, scales = [], []
    for rows in torch.split(values, ROWS):
        groups = rows.view(len(rows), -1, GROUP)
        scale = (groups.abs().amax(-1) / LARGEST).half()
        scale[scale == 0] = 1.0  # a group of zeros, or of numbers too small for any float16 scale
        if not scale.isfinite().all():
            return None
        own = (groups / scale.float()[..., None]).round().to(torch.int8).view(rows.shape)
        if not torch.equal(Quantized(own, scale, None, bits=8).dequantize(), rows):
            return None
        codes.append(own)
        scales.append(scale)
    return Quantized(torch.cat(codes), torch.cat(scales), None, bits=8)
