"""Decoder blocks taken whole: which, and models made of them equal to torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from tests.lowering.built import LONGEST, Built, build, decoded, dense_logits, tokens
from trinity.lowering.graph.operators.attention import attention_formats
from trinity.lowering.graph.operators.block import block_formats
from trinity.lowering.module import check
from trinity.lowering.module.compile import compile_text
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, WeightFormat, format_of

Decoder = Callable[..., nn.Module]
Compress = Callable[..., dict[str, CompressedWeight]]
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def compressed(model: nn.Module, compress_block: Compress) -> dict[str, CompressedWeight]:
    """Two blocks of two formats, neither with padded inputs."""
    weights = compress_block(model, 0, "int4 group 16", "2:4", 3)
    return weights | compress_block(model, 1, "int8 group 16 asymmetric")


@pytest.fixture(scope="module")
def llama(
    make_decoder: Decoder, compress_block: Compress, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    model = make_decoder("llama", **WIDE)
    weights = compressed(model, compress_block)
    return build(model, weights, "llvm-cpu", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_windows_and_biases_equal_torch_token_by_token(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path, family: str
) -> None:
    model = make_decoder(family, **WIDE, head_dim=32, intermediate_size=64)
    built = build(model, compressed(model, compress_block), "llvm-cpu", tmp_path)
    assert list(block_formats(built.plan, 1)) == ["model.layers.0", "model.layers.1"]
    ids = tokens(LONGEST)
    found = decoded(built.load().session(), ids, 3)
    assert check.relative_error(found, dense_logits(built, ids)[:, 2:]) < 1e-5


def test_a_module_of_whole_blocks_equals_torch_again_and_again(llama: Built) -> None:
    ids = tokens(LONGEST)
    expected, compiled = dense_logits(llama, ids)[:, 2:], llama.load()
    first = decoded(compiled.session(), ids, 3)
    assert check.relative_error(first, expected) < 1e-5
    for _ in range(20):  # workers that meet at another moment change nothing
        assert decoded(compiled.session(), ids, 3).equal(first)


def test_a_step_is_one_dispatch_a_block_and_copies_no_cache(llama: Built) -> None:
    assert llama.lowered.torch.count("trinity.packed_block") == 2
    assert len({block.function for block in block_formats(llama.plan, 1).values()}) == 2
    stream = compile_text(llama.lowered.target, llama.plan.target, ("--compile-to=stream",))
    step = stream.decode().partition("@step$async(")[2].partition("util.func public")[0]
    assert step.count("stream.cmd.dispatch @block_") == 2
    cache = 4 * 1 * 24 * 32  # bytes: heads, positions, width
    assert f"for %c{cache}]" in step
    assert not [line for line in step.splitlines() if "cmd.copy" in line and f"%c{cache} :" in line]


def test_the_annotated_stage_says_what_a_blocks_weights_are(llama: Built) -> None:
    lines = llama.lowered.annotated.splitlines()
    declared = [line for line in lines if "func.func private @block_" in line]
    assert len(declared) == 2
    assert any("#sparse" in line and "xi8" in line for line in declared)
    assert any("!quant.uniform<u8:f32" in line for line in declared)
    assert "func.func private @block_" in llama.lowered.storage
    assert "packed_block" not in llama.lowered.annotated


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_prefill_in_chunks_goes_through_the_attention_of_many_tokens(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path, family: str
) -> None:
    model = make_decoder(family, **WIDE, head_dim=32, max_position_embeddings=128)
    weights = compress_block(model, 0, "int8 channel")  # the other block's linears are dense
    built = build(model, weights, "llvm-cpu", tmp_path, lengths=(1, 32), longest=120)
    assert list(attention_formats(built.plan, 32)) == ["model.layers.0", "model.layers.1"]
    assert built.lowered.torch.count("trinity.packed_attention") == 2
    ids = tokens(100)
    expected, compiled = dense_logits(built, ids), built.load()
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 70), expected[:, 69:]) < 1e-5


def formats(model: nn.Module, weights: dict[str, CompressedWeight]) -> dict[str, WeightFormat]:
    return {name: format_of(weight) for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("family", "changes", "kept"),
    [
        ("llama", {}, 2),
        ("llama", {"num_attention_heads": 4}, 0),  # heads of 16
        ("llama", {"attention_bias": True}, 0),
        ("gemma2", {"head_dim": 32}, 0),
    ],
)
def test_blocks_of_another_make_stay_in_the_graph(
    make_decoder: Decoder, compress_block: Compress, family: str, changes: dict[str, int], kept: int
) -> None:
    model = make_decoder(family, **{**WIDE, **changes})
    found = formats(model, compressed(model, compress_block))
    plan = Lowering(model.config, found, targets.get("llvm-cpu"))
    assert len(block_formats(plan, 1)) == kept
    assert block_formats(plan, 128) == {}
    several = Lowering(model.config, found, targets.get("llvm-cpu"), batch=2)
    assert (block_formats(several, 1), attention_formats(several, 128)) == ({}, {})
    without_kernels = replace(targets.get("vulkan"), kernels=None)
    elsewhere = Lowering(model.config, found, without_kernels)
    assert (block_formats(elsewhere, 1), attention_formats(elsewhere, 128)) == ({}, {})


def test_a_block_with_one_dense_linear_stays_in_the_graph(
    make_decoder: Decoder, compress_block: Compress
) -> None:
    model = make_decoder("llama", **WIDE)
    found = formats(model, compressed(model, compress_block))
    del found["model.layers.1.mlp.up_proj"]
    plan = Lowering(model.config, found, targets.get("llvm-cpu"))
    assert list(block_formats(plan, 1)) == ["model.layers.0"]
