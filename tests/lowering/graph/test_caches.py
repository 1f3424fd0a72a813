"""Modules whose caches are codes: which there are, and that a step copies none of them."""

from collections.abc import Callable

import pytest
from torch import nn

from trinity.lowering import lower as lowering
from trinity.lowering.module.compile import compile_text
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import cache_refusal
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CacheFormat, CompressedWeight, format_of

Decoder = Callable[..., nn.Module]
Compress = Callable[..., dict[str, CompressedWeight]]
CPU = targets.get("llvm-cpu")
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
POSITIONS = 64


def planned(
    model: nn.Module, compress_block: Compress, blocks: int = 2, lengths: tuple[int, ...] = (1, 32)
) -> Lowering:
    weights: dict[str, CompressedWeight] = {}
    for index in range(blocks):
        weights |= compress_block(model, index, "int8 channel")
    formats = {name: format_of(weight) for name, weight in weights.items()}
    return Lowering(model.config, formats, CPU, lengths, POSITIONS, cache=CacheFormat(8))


def test_a_step_writes_codes_in_place(make_decoder: Decoder, compress_block: Compress) -> None:
    model = make_decoder("llama", **WIDE, max_position_embeddings=POSITIONS)
    plan = planned(model, compress_block)
    row = 32 + 4  # bytes: a code of every number, a scale and a minimum
    assert plan.caches == (1, 1, POSITIONS, row // 4)
    lowered = lowering.lower(model, plan)
    stream = compile_text(lowered.target, CPU, ("--compile-to=stream",)).decode()
    for function in ("step", "trunk_32"):
        body = stream.partition(f"@{function}$async(")[2].partition("util.func public")[0]
        assert f"for %c{POSITIONS * row}]" in body
        copies = [line for line in body.splitlines() if "cmd.copy" in line]
        assert not [line for line in copies if f"%c{POSITIONS * row} :" in line]


def test_other_caches_are_other_modules(make_decoder: Decoder, compress_block: Compress) -> None:
    model = make_decoder("llama", **WIDE, max_position_embeddings=POSITIONS)
    plan = planned(model, compress_block)
    floats = Lowering(plan.config, plan.formats, CPU, plan.lengths, POSITIONS)
    assert plan.fingerprint() != floats.fingerprint()
    assert lowering.export_key(plan) != lowering.export_key(floats)


@pytest.mark.parametrize(
    ("changes", "blocks", "lengths", "tokens", "taken"),
    [
        ({"num_attention_heads": 4}, 2, (1, 32), 1, 0),  # heads of 16
        ({}, 1, (1, 32), 1, 1),  # a block whose linears are dense
        ({}, 2, (1, 8), 8, 0),  # prompts in chunks that no kernel of attention takes
    ],
)
def test_a_block_that_no_kernel_of_ours_computes_is_refused(
    make_decoder: Decoder,
    compress_block: Compress,
    changes: dict[str, int],
    blocks: int,
    lengths: tuple[int, ...],
    tokens: int,
    taken: int,
) -> None:
    sizes = {**WIDE, "max_position_embeddings": POSITIONS, **changes}
    model = make_decoder("llama", **sizes)
    plan = planned(model, compress_block, blocks, lengths)
    said = rf"^cache int8 token and head: in steps of {tokens} tokens .* of {taken} of 2 blocks"
    with pytest.raises(UnsupportedError, match=said):
        lowering.export(model, plan)


@pytest.mark.parametrize(
    ("target", "kept", "reason"),
    [
        ("vulkan", CacheFormat(8), "kernels for this target read keys and values as floats only"),
        ("cuda", CacheFormat(8), "kernels for this target read keys and values as floats only"),
        ("llvm-cpu", CacheFormat(3), "kernels read caches of 4 and 8 bits a number"),
        ("llvm-cpu", CacheFormat(4, 64, 0.02, 4), "each position rounded by itself"),
        ("llvm-cpu", CacheFormat(4), None),
    ],
)
def test_a_cache_that_a_target_does_not_read_is_refused(
    make_decoder: Decoder, target: str, kept: CacheFormat, reason: str | None
) -> None:
    place = targets.get(target)
    assert reason is None or reason in str(cache_refusal(kept, place))
    if reason is not None:
        with pytest.raises(UnsupportedError, match=r"^cache int.*read"):
            Lowering(make_decoder("llama").config, {}, place, (1,), 16, cache=kept)
