"""Models of every family on a Vulkan device, equal to torch in prefill and token by token."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from tests.lowering.built import LONGEST, build, decoded, dense_logits, tokens
from tests.lowering.test_lower import MORE, MOST
from trinity.lowering.module import check, devices
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight

Decoder = Callable[..., nn.Module]
Compress = Callable[..., dict[str, CompressedWeight]]
# Whose blocks are shaders of ours, one with biases.
BLOCKS = ("mistral", "qwen2")


@pytest.mark.parametrize(
    "family",
    [
        *BLOCKS,
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in (*MOST, *MORE)
            if family not in BLOCKS
        ),
    ],
)
def test_a_family_equals_torch_on_vulkan_in_prefill_and_token_by_token(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path, family: str
) -> None:
    if not devices.available(targets.get("vulkan")):
        pytest.skip("no Vulkan device (Debian's mesa-vulkan-drivers has one that runs on the CPU)")
    model = make_decoder(family)
    weights = {
        **compress_block(model, 0, "int4 channel"),
        **compress_block(model, 1, "int4 channel"),
    }
    built = build(model, weights, "vulkan", tmp_path)
    assert ("@cache_" in built.lowered.target) == (family in BLOCKS)
    ids = tokens(LONGEST)
    expected, compiled = dense_logits(built, ids), built.load()
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 3), expected[:, 2:]) < 1e-5
