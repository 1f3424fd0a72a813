"""What a module depends on: refused before anything is exported, and the key that follows."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn

from tests.lowering.built import LENGTHS, LONGEST
from trinity.lowering.kernels.cpu import flavour
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.formats import CompressedWeight, InputFormat, format_of

Decoder = Callable[..., nn.Module]
Compress = Callable[..., dict[str, CompressedWeight]]


def test_a_batch_of_none_is_refused_before_anything_is_exported(make_decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="batch 0: a step takes at least 1 sequence"):
        Lowering(make_decoder("llama").config, {}, targets.get("llvm-cpu"), batch=0)


def test_a_fingerprint_depends_on_formats_and_sizes_and_not_on_numbers(
    make_decoder: Decoder, compress_block: Compress
) -> None:
    model, cpu = make_decoder("llama"), targets.get("llvm-cpu")
    formats = {n: format_of(w) for n, w in compress_block(model, 0, "int4 channel").items()}
    others = {n: format_of(w) for n, w in compress_block(model, 0, "int3 channel").items()}
    plan = Lowering(model.config, formats, cpu, LENGTHS, LONGEST)
    assert (
        plan.fingerprint()
        == Lowering(model.config, dict(formats), cpu, LENGTHS, LONGEST).fingerprint()
    )
    different = [
        Lowering(model.config, others, cpu, LENGTHS, LONGEST),
        Lowering(model.config, formats, targets.get("cuda"), LENGTHS, LONGEST),
        Lowering(model.config, formats, targets.get("llvm-cpu", "x86-64-v3"), LENGTHS, LONGEST),
        Lowering(model.config, formats, cpu, (1, 4), LONGEST),
        Lowering(model.config, formats, cpu, LENGTHS, LONGEST + 1),
        Lowering(model.config, formats, cpu, LENGTHS, LONGEST, "float16"),
        Lowering(model.config, formats, cpu, LENGTHS, LONGEST, batch=2),
    ]
    assert all(plan.fingerprint() != other.fingerprint() for other in different)


def test_a_fingerprint_depends_on_the_kernels_that_this_machine_may_run(
    make_decoder: Decoder, compress_block: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_decoder("llama")
    formats = {n: format_of(w) for n, w in compress_block(model, 0, "int4 channel").items()}
    found = []
    for made in (INSTRUCTIONS["amx"], INSTRUCTIONS["avx512-vnni"]):
        monkeypatch.setattr(flavour, "host_instructions", lambda of=made: of)
        found.append(Lowering(model.config, formats, targets.get("llvm-cpu")).fingerprint())
    assert found[0] != found[1]


def test_refused_formats_are_refused_before_anything_is_exported(
    make_decoder: Decoder, compress_block: Compress
) -> None:
    model = make_decoder("llama")
    weights = compress_block(model, 1, "int4 channel")
    fp8 = InputFormat("fp8")
    formats = {name: replace(format_of(weight), inputs=fp8) for name, weight in weights.items()}
    with pytest.raises(UnsupportedError, match=r"layers\.1\.self_attn\.q_proj: .*inputs fp8"):
        Lowering(model.config, formats, targets.get("cuda"))
