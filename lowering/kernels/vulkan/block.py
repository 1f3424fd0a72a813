"""A whole decoder block at one token as a row of shaders.

    x1 = x + o(attention(q(n), k(n), v(n))),   n = norm(x)
    y = x1 + down(silu(gate(m)) * up(m)),      m = norm(x1)

What is added to a product, or multiplied with it, is part of its dispatch: eleven are left, and one
more for each adapter.
"""

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_calls import bits_of, heads_refusal
from trinity.lowering.kernels.decoder_parts import MLP, NORMS, QKVO, BlockFormat
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.lowering.kernels.vulkan.attention import attended
from trinity.lowering.kernels.vulkan.dispatches import Dispatches
from trinity.lowering.kernels.vulkan.executable import Shader, Workgroup
from trinity.lowering.kernels.vulkan.launch import MOST_LANES, After
from trinity.lowering.mlir.builder import tensor_type

ROW = 32  # lanes of a norm's workgroup


def block_refusal(block: BlockFormat) -> str | None:
    """Why a block has no kernel of its own, or None."""
    if block.hidden % 4:
        return "it is not a multiple of 4 wide"
    for name, weight_format in block.linears.items():
        if reason := refusal(weight_format):
            return f"{name}: {reason}"
    return heads_refusal(block.heads)


def block_kernels(block: BlockFormat) -> KernelCode:
    """The private function `(*activations, *parameters) -> hidden, keys, values`.

    It writes the caches in place.
    """
    return _Writer(block).written()


class _Writer:
    """Writes one block's function."""

    def __init__(self, block: BlockFormat) -> None:
        self.block, self.made = block, Dispatches()
        shapes = {**block.activations(), **block.parameters(Strips)}
        self.given = {key: (f"%arg_{key}", tensor_type(*of)) for key, of in shapes.items()}

    def written(self) -> KernelCode:
        """The function and its executables."""
        block, build = self.block, self.made.build
        value, kind = self.given["hidden"]
        x = build.collapse(value, [[1, 1], [block.hidden]], "f32")
        mixed, keys, values = self.attention(x)
        middle = self.linear(QKVO[-1], mixed, ("added", x))
        x = self.normed(middle, NORMS[1])
        up = self.linear(MLP[1], x)
        gated = self.linear(MLP[0], x, ("gated", up))
        last = self.linear(MLP[2], gated, ("added", middle))
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
            bias = self.bias(name, out)
            given[key] = self.linear(name, x, bias), tensor_type((1, out), "f32")
        return attended(self.made, self.block.heads, 1, given)

    def bias(self, name: str, out: int) -> tuple[After, str] | None:
        """What is added to a linear that has a bias."""
        if name not in self.block.biases:
            return None
        row = self.made.build.expand(self.given[f"{name}.bias"][0], (out,), [[1, out]], "f32")
        return "added", row

    def linear(self, name: str, x: str, after: tuple[After, str] | None = None) -> str:
        """[1, in] -> [1, out]"""
        strips = Strips(self.block.linears[name])
        return self.made.product(strips, 1, x, f"{name}.", after)

    def normed(self, x: str, name: str) -> str:
        """[1, hidden] -> the same shape"""
        kind, words = tensor_type((1, self.block.hidden), "f32"), self.block.hidden // 4
        shader = Shader("norm", Workgroup(ROW, MOST_LANES // ROW), 1, (), 2, 2, 1)
        numbers = (words, bits_of(self.block.epsilon))
        return self.made.dispatch(shader, (1, 1), [(x, kind), self.given[name]], kind, numbers)
