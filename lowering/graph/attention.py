"""Attention as a compiled step wants it: every key and value read once for all heads that share it.

The library's own form repeats keys and values for every query head before the product.  Eager torch
hides that in a view; a compiled module writes it out, several times the cache a token.
"""

import torch
from torch import Tensor, nn

NAME = "trinity_grouped"  # registered with the model library by whoever builds the model


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_ignored: object,
) -> tuple[Tensor, None]:
    """Softmax(scaling * Q K^T + mask) V, query heads grouped by the key/value head they share.

    query: [batch, heads, T, d]   key, value: [batch, kv_heads, L, d]
    attention_mask: [batch, 1, T, L], or [1, 1, T, L] for all sequences, added
    softcap: c of `c tanh(scores / c)`, before the mask (Gemma 2)
    -> [batch, T, heads, d], and None for the weights that nobody asks for
    """
    batch, heads, tokens, width = query.shape
    shared = key.shape[1]
    rows = (query * (width**-0.5 if scaling is None else scaling)).reshape(
        batch, shared, heads // shared * tokens, width
    )
    scores = torch.matmul(rows, key.transpose(2, 3))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    grouped = scores.reshape(batch, shared, heads // shared, tokens, key.shape[2])
    if attention_mask is not None:
        grouped = grouped + attention_mask[:, :, None]
    weights = torch.softmax(grouped, dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.matmul(weights.reshape(scores.shape), value)
    return mixed.reshape(batch, heads, tokens, width).transpose(1, 2).contiguous(), None
