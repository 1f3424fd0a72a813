"""Decoders for NVIDIA's and AMD's GPUs: what their modules hold, and how much they dispatch."""

from collections.abc import Callable

import pytest
from torch import nn

from benchmarks.dispatches import counted, scheduled
from trinity.lowering import lower
from trinity.lowering.kernels.rocm.kernels import RocmKernels
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, format_of

Make = Callable[..., CompressedWeight]


MOST = 33  # as counted on `cuda`, where it was 68 with kernels of products alone
TARGETS = [name for name in targets.BUILT_IN if name == "cuda" or name.startswith("rocm")]


@pytest.mark.parametrize("name", TARGETS)
def test_a_module_for_one_token_holds_its_kernels_and_dispatches_few(
    make_decoder: Callable[..., nn.Module], make_weight: Make, name: str
) -> None:
    model, target = make_decoder("llama", intermediate_size=64), targets.get(name)
    formats = {
        key: format_of(make_weight(tuple(layer.weight.shape), "int4 group 32"))
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".layers." in key
    }
    lowered = lower.lower(model, Lowering(model.config, formats, target, (1,), 32))
    assert counted(scheduled(lowered.target, target))[0] <= MOST
    assert target.kernels is not None
    kernels = target.kernels()
    if isinstance(kernels, RocmKernels):
        for path in kernels.code.entries:
            assert lowered.vmfb.count((kernels.objects / path).read_bytes()) == 1
