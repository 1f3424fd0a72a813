"""A whole decoder block at one token as a row of launches.

x1 = x + o(attention(q(n), k(n), v(n))),   n = norm(x)
y = x1 + down(silu(gate(m)) * up(m)),      m = norm(x1)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_calls import Typed, attention_refusal, heads_refusal
from trinity.lowering.kernels.decoder_parts import (
    ATTENTION,
    BLOCK,
    MLP,
    NORMS,
    QKVO,
    BlockFormat,
)
from trinity.lowering.kernels.lanes.attention import attended, attention_kernels
from trinity.lowering.kernels.lanes.decoder import (
    added,
    added_and_normed,
    gated,
    normed,
    one_token,
)
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
        x: Typed,
        place: str,
        added: str | None,
    ) -> str:
        """x: its input, as `Linears.takes` has it   the rest: see `lane_product`"""


@dataclass(frozen=True)
class Linears:
    """What a target does with linears.

    adds: whether a product adds something itself; else it is given nothing to add
    takes: the type in which linears of one input take a token of it: float32 [1, in], or digits
    """

    refusal: Callable[[WeightFormat], str | None]
    storage: Callable[[WeightFormat], WeightStorage]
    product: Product
    adds: Callable[[WeightFormat], bool]
    takes: Callable[[Sequence[WeightFormat]], str]


def _lane_product(
    made: Dispatches, weight_format: WeightFormat, x: Typed, place: str, added: str | None
) -> str:
    return lane_product(made, Strips(weight_format), 1, x[0], place, added)


LANE_LINEARS = Linears(
    refusal, Strips, _lane_product, lambda _: True, lambda some: one_token(some[0].shape[1])
)


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
        middle, normed = self.middle(mixed, x)
        gate, up = (self.linear(name, normed) for name in MLP[:2])
        inner = block.linears[MLP[0]].shape[0]
        product = gated(self.made, gate, up, inner, self.taken_by(MLP[2]))
        last = self.linear(MLP[2], product, middle)
        hidden = build.expand(last, (1, block.hidden), [[1, 1], [block.hidden]], "f32")
        arguments = [f"{name}: {of}" for name, of in self.given.values()]
        results = [(hidden, kind), (keys, self.given["keys"][1]), (values, self.given["values"][1])]
        function = build.function_of(block.function, arguments, results)
        return KernelCode(block.function, function, self.made.executables)

    def attention(self, x: str) -> tuple[Typed, str, str]:
        """What the last of its linears takes, and both caches."""
        normed = self.normed(x, NORMS[0], self.taken_by(*QKVO[:-1]))
        given = {key: self.given[key] for key in ("cos", "sin", "position", "keys", "values")}
        for key, name in zip("qkv", QKVO[:-1], strict=True):
            out = self.block.linears[name].shape[0]
            given[key] = self.linear(name, normed, self.bias(name)), one_token(out)
        kind = self.taken_by(QKVO[-1])
        mixed, keys, values = attended(self.made, self.block.heads, 1, given, kind)
        return (mixed, kind), keys, values

    def middle(self, mixed: Typed, x: str) -> tuple[str, Typed]:
        """`x1` and its norm, as the linears behind it take it."""
        name, kind, width = QKVO[-1], self.taken_by(*MLP[:2]), self.block.hidden
        if kind != one_token(width) and not self.linears.adds(self.block.linears[name]):
            y, scale = self.linear(name, mixed), self.given[NORMS[1]]
            return added_and_normed(self.made, x, y, scale, width, self.block.epsilon, kind)
        found = self.linear(name, mixed, x)
        return found, self.normed(found, NORMS[1], kind)

    def bias(self, name: str) -> str | None:
        """What is added to a linear that has a bias."""
        if name not in self.block.biases:
            return None
        out = self.block.linears[name].shape[0]
        return self.made.build.expand(self.given[f"{name}.bias"][0], (out,), [[1, out]], "f32")

    def taken_by(self, *names: str) -> str:
        """The type in which linears of one input take it."""
        return self.linears.takes([self.block.linears[name] for name in names])

    def linear(self, name: str, x: Typed, addend: str | None = None) -> str:
        """A token of the input -> [1, out]"""
        weight_format = self.block.linears[name]
        if addend is None or self.linears.adds(weight_format):
            return self.linears.product(self.made, weight_format, x, f"{name}.", addend)
        y = self.linears.product(self.made, weight_format, x, f"{name}.", None)
        return added(self.made, addend, y, weight_format.shape[0])

    def normed(self, x: str, name: str, kind: str) -> Typed:
        """[1, hidden] -> a value of that type"""
        return normed(self.made, x, self.given[name], self.block.hidden, self.block.epsilon, kind)
