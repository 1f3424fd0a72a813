"""A whole decoder block at one token as a row of launches.

x1 = x + o(attention(q(n), k(n), v(n))),   n = norm(x)
y = x1 + down(silu(gate(m)) * up(m)),      m = norm(x1)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_calls import attention_refusal, heads_refusal
from trinity.lowering.kernels.decoder_parts import (
    ATTENTION,
    BLOCK,
    MLP,
    NORMS,
    QKVO,
    BlockFormat,
)
from trinity.lowering.kernels.lanes.attention import attended, attention_kernels
from trinity.lowering.kernels.lanes.decoder import element_by_element, normed
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.lanes.executable import Compiled
from trinity.lowering.kernels.lanes.linear import lane_product
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.lowering.kernels.target_kernels import FusedKernel
from trinity.lowering.mlir.builder import tensor_type
from trinity.lowering.weight_storage import WeightStorage
from trinity.methods.formats import WeightFormat


class Product(Protocol):
    """Launches of a linear with one token."""

    def __call__(
        self,
        made: Dispatches,
        weight_format: WeightFormat,
        x: str,
        place: str,
        added: str | None,
    ) -> str:
        """See `lane_product`."""


@dataclass(frozen=True)
class Linears:
    """What a target does with linears."""

    refusal: Callable[[WeightFormat], str | None]
    storage: Callable[[WeightFormat], WeightStorage]
    product: Product


def _lane_product(
    made: Dispatches, weight_format: WeightFormat, x: str, place: str, added: str | None
) -> str:
    return lane_product(made, Strips(weight_format), 1, x, place, added)


LANE_LINEARS = Linears(refusal, Strips, _lane_product)


def fused_kernels(code: Compiled, linears: Linears) -> Mapping[str, FusedKernel[Any]]:
    """Kernels of whole operators, as `TargetKernels.fused` has them."""
    return {
        BLOCK: FusedKernel(
            lambda block: block_refusal(block, linears),
            lambda block: block_kernels(block, code, linears),
        ),
        ATTENTION: FusedKernel(
            attention_refusal, lambda attention: attention_kernels(attention, code)
        ),
    }


def block_refusal(block: BlockFormat, linears: Linears) -> str | None:
    """Why a block has no kernel of its own, or None."""
    for name, weight_format in block.linears.items():
        if reason := linears.refusal(weight_format):
            return f"{name}: {reason}"
    return heads_refusal(block.heads)


def block_kernels(block: BlockFormat, code: Compiled, linears: Linears) -> KernelCode:
    """The private function `(*activations, *parameters) -> hidden, keys, values`.

    It writes the caches in place.
    """
    return _Writer(block, code, linears).written()


class _Writer:
    """Writes one block's function."""

    def __init__(self, block: BlockFormat, code: Compiled, linears: Linears) -> None:
        self.block, self.made, self.linears = block, Dispatches(code), linears
        shapes = {**block.activations(), **block.parameters(linears.storage)}
        self.given = {key: (f"%arg_{key}", tensor_type(*of)) for key, of in shapes.items()}

    def written(self) -> KernelCode:
        """The function and its executables."""
        block, build = self.block, self.made.build
        value, kind = self.given["hidden"]
        x = build.collapse(value, [[1, 1], [block.hidden]], "f32")
        mixed, keys, values = self.attention(x)
        middle = self.linear(QKVO[-1], mixed, x)
        x = self.normed(middle, NORMS[1])
        gate, up = (self.linear(name, x) for name in MLP[:2])
        inner = block.linears[MLP[0]].shape[0]
        gated = element_by_element(self.made, "gate", gate, up, inner)
        last = self.linear(MLP[2], gated, middle)
        hidden = build.expand(last, (1, block.hidden), [[1, 1], [block.hidden]], "f32")
        arguments = [f"{name}: {of}" for name, of in self.given.values()]
        results = [(hidden, kind), (keys, self.given["keys"][1]), (values, self.given["values"][1])]
        function = build.function_of(block.function, arguments, results)
        return KernelCode(block.function, function, self.made.executables)

    def attention(self, x: str) -> tuple[str, str, str]:
        """What the last of its linears takes, [1, heads width], and both caches."""
        x = self.normed(x, NORMS[0])
        given = {key: self.given[key] for key in ("cos", "sin", "position", "keys", "values")}
        for key, name in zip("qkv", QKVO[:-1], strict=True):
            out = self.block.linears[name].shape[0]
            given[key] = self.linear(name, x, self.bias(name)), tensor_type((1, out), "f32")
        return attended(self.made, self.block.heads, 1, given)

    def bias(self, name: str) -> str | None:
        """What is added to a linear that has a bias."""
        if name not in self.block.biases:
            return None
        out = self.block.linears[name].shape[0]
        return self.made.build.expand(self.given[f"{name}.bias"][0], (out,), [[1, out]], "f32")

    def linear(self, name: str, x: str, added: str | None = None) -> str:
        """[1, in] -> [1, out]"""
        return self.linears.product(self.made, self.block.linears[name], x, f"{name}.", added)

    def normed(self, x: str, name: str) -> str:
        """[1, hidden] -> the same shape"""
        return normed(self.made, x, self.given[name], self.block.hidden, self.block.epsilon)
