"""Whole models whose weights are of tables."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.lowering.built import LONGEST, build, decoded, dense_logits, tokens
from trinity.lowering.module import check
from trinity.methods.formats import CompressedWeight

Decoder = Callable[..., nn.Module]
Compress = Callable[..., dict[str, CompressedWeight]]


def test_values_of_tables_are_decoded_as_in_torch(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path
) -> None:
    """One block is a dispatch of its own, of the other one inputs are padded."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    model = make_decoder("llama", **sizes)
    weights = compress_block(model, 0, "nf4 group 16", None, 3, torch.float16)
    for name, kind in (("q_proj", "e2m1 group 16 e4m3 outer"), ("o_proj", "e2m1 group 32 e8m0")):
        key = f"model.layers.0.self_attn.{name}"
        weights[key] = compress_block(model, 0, kind)[key]
    weights |= compress_block(model, 1, "e4m3 channel")
    weights |= {
        name: weight
        for name, weight in compress_block(model, 1, "nf4 group 8", "2:4").items()
        if "self_attn" in name
    }
    weights |= {
        name: weight
        for name, weight in compress_block(model, 1, "rows of 3").items()
        if "mlp.up" in name
    }
    built = build(model, weights, "llvm-cpu", tmp_path)
    ids, compiled = tokens(LONGEST), built.load()
    assert built.lowered.meta["path"] == "kernel"
    assert "@block_" in built.lowered.target
    assert "tensor<64x64xf4E2M1FN>" in built.lowered.annotated
    assert "xf8E8M0FNU>" in built.lowered.annotated
    expected = dense_logits(built, ids)
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 3), expected[:, 2:]) < 1e-5
