"""A norm's transposed result on Vulkan, of which the compiler's own code is a race."""

import re

import pytest
import torch

from trinity.lowering.module import devices
from trinity.lowering.module.compile import compile_text, target_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.module.transposes import kept_apart
from trinity.lowering.targets import targets

# As Cohere's queries: the weight is [heads, head_dim], so nothing can be flattened.
NORM = """module {
  func.func @norm(%x: !torch.vtensor<[5,4,8],f32>, %w: !torch.vtensor<[4,8],f32>) \
-> !torch.vtensor<[4,5,8],f32> {
    %false = torch.constant.bool false
    %true = torch.constant.bool true
    %none = torch.constant.none
    %int0 = torch.constant.int 0
    %int1 = torch.constant.int 1
    %int2 = torch.constant.int 2
    %last = torch.prim.ListConstruct %int2 : (!torch.int) -> !torch.list<int>
    %0 = torch.aten.mul.Tensor %x, %x : !torch.vtensor<[5,4,8],f32>, \
!torch.vtensor<[5,4,8],f32> -> !torch.vtensor<[5,4,8],f32>
    %1 = torch.aten.mean.dim %0, %last, %true, %none : !torch.vtensor<[5,4,8],f32>, \
!torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[5,4,1],f32>
    %2 = torch.aten.rsqrt %1 : !torch.vtensor<[5,4,1],f32> -> !torch.vtensor<[5,4,1],f32>
    %3 = torch.aten.mul.Tensor %x, %2 : !torch.vtensor<[5,4,8],f32>, \
!torch.vtensor<[5,4,1],f32> -> !torch.vtensor<[5,4,8],f32>
    %4 = torch.aten.mul.Tensor %w, %3 : !torch.vtensor<[4,8],f32>, \
!torch.vtensor<[5,4,8],f32> -> !torch.vtensor<[5,4,8],f32>
    %5 = torch.prim.ListConstruct %int1, %int0, %int2 : (!torch.int, !torch.int, !torch.int) \
-> !torch.list<int>
    %6 = torch.aten.permute %4, %5 : !torch.vtensor<[5,4,8],f32>, !torch.list<int> \
-> !torch.vtensor<[4,5,8],f32>
    return %6 : !torch.vtensor<[4,5,8],f32>
  }
}
"""


def test_a_barrier_stands_between_a_norm_and_its_transposition_on_vulkan_alone() -> None:
    text = target_text(NORM, targets.get("vulkan"))
    held = re.search(r"(%\w+) = torch_c.from_builtin_tensor (%\w+) : tensor<5x4x8xf32>", text)
    assert held
    assert f"{held[2]} = util.optimization_barrier" in text
    assert f"torch.aten.permute {held[1]}, %5 : " in text
    assert "optimization_barrier" not in target_text(NORM, targets.get("llvm-cpu"))


def test_what_is_not_computed_just_before_is_transposed_as_it_is() -> None:
    text = NORM.replace("permute %4", "permute %x")
    assert kept_apart(text) == text
    # The same name in another function is another value.
    head, _, rest = NORM.removesuffix("}\n").partition("func.func")
    other = "func.func @other" + rest.partition("@norm")[2].replace("permute %4", "permute %x")
    other = other.replace("%4 =", "%7 =").replace("(%x:", "(%4:").replace("%x", "%4")
    both = f"{head}func.func{rest}  {other}}}\n"
    assert kept_apart(both).count("util.optimization_barrier") == 1


def test_the_transposed_norm_equals_float64_on_a_vulkan_device() -> None:
    vulkan = targets.get("vulkan")
    if not devices.available(vulkan):
        pytest.skip("no Vulkan device (Debian's mesa-vulkan-drivers has one that runs on the CPU)")
    x, w = torch.randn(5, 4, 8), torch.randn(4, 8)
    expected = x.double() * x.double().square().mean(-1, keepdim=True).rsqrt() * w.double()
    compiled = compile_text(target_text(NORM, vulkan), vulkan, ["--iree-input-type=torch"])
    loaded = Loaded(compiled, vulkan)
    found = loaded.fetch(loaded.call("norm", [loaded.put(x), loaded.put(w)]))
    assert torch.allclose(found.double(), expected.permute(1, 0, 2), atol=1e-6)
