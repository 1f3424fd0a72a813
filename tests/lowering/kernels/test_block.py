"""Kernels of whole decoder blocks against the library's own block in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trinity.lowering import targets
from trinity.lowering.check import relative_error
from trinity.lowering.compile import compile_text
from trinity.lowering.invoke import Loaded
from trinity.lowering.kernels.attention import Heads
from trinity.lowering.kernels.block import (
    LINEARS,
    NORMS,
    BlockFormat,
    block_kernels,
    block_refusal,
)
from trinity.lowering.kernels.choose import host_flavour
from trinity.lowering.kernels.linear import with_kernels
from trinity.lowering.kernels.panels import Panels
from trinity.lowering.targets import Target
from trinity.methods.formats import CompressedWeight, InputFormat, Quantized, format_of

Make = Callable[..., CompressedWeight]
CPU = targets.get("llvm-cpu")
HIDDEN, INNER, WIDTH, HEADS, KV_HEADS, LONGEST = 96, 160, 32, 3, 1, 40
SHAPES = {
    "q_proj": (HEADS * WIDTH, HIDDEN),
    "k_proj": (KV_HEADS * WIDTH, HIDDEN),
    "v_proj": (KV_HEADS * WIDTH, HIDDEN),
    "o_proj": (HIDDEN, HEADS * WIDTH),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}
FORMATS = [
    ("int4 group 32", None, 0),
    ("int4 group 32", "2:4", 5),
    ("int8 tensor", "50%", 0),
    ("int3 group 32 asymmetric", None, 0),
    ("int2 group 16", None, 3),
    ("bfloat16", None, 7),
    ("float16", "50%", 3),
]


def scaled(weight: CompressedWeight) -> CompressedWeight:
    """The same weight with entries small enough that a block does not blow up."""
    if isinstance(weight, Quantized):
        return replace(weight, scale=weight.scale / 2**weight.bits / 3)
    if hasattr(weight, "base"):
        return replace(weight, base=scaled(weight.base), B=weight.B / 9, A=weight.A / 9)
    if hasattr(weight, "mask"):
        return replace(weight, values=scaled(weight.values))
    return replace(weight, values=weight.values / 9)  # type: ignore[call-arg, union-attr]


@pytest.fixture(params=["digits", "floats"])
def flavour(request: pytest.FixtureRequest) -> Any:
    if request.param == "digits" and host_flavour() == "floats":
        pytest.skip("this processor has no AVX-512 VNNI and VBMI2, which 'digits' needs")
    return request.param


class Case:
    """One block, its compiled kernel, and the library's layer with the same weights in float64."""

    def __init__(
        self,
        weights: dict[str, CompressedWeight],
        flavour: Any,
        window: int | None = None,
        inputs: InputFormat | None = None,
    ) -> None:
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        config = llama.LlamaConfig(
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=WIDTH,
        )
        config._attn_implementation = "eager"
        formats = {name: replace(format_of(w), inputs=inputs) for name, w in weights.items()}
        heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, window, WIDTH**-0.5)
        self.block = BlockFormat(HIDDEN, heads, config.rms_norm_eps, formats)
        assert block_refusal(self.block, flavour) is None
        kernels = block_kernels(self.block, flavour)
        text = with_kernels("module {\n}\n", [kernels]).replace("func.func private", "func.func")
        self.code = compile_text(text, CPU)
        self.layer, self.window = llama.LlamaDecoderLayer(config, 0).eval().double(), window
        self.rotary = llama.LlamaRotaryEmbedding(config)
        stored: dict[str, Tensor] = {}
        for name in NORMS:
            values = 1 + 0.1 * torch.randn(HIDDEN)
            self.layer.get_parameter(name).data = values.double()
            stored[name] = values
        for name, weight in weights.items():
            linear = self.layer.get_submodule(name)
            linear.weight.data = weight.dequantize().double()
            if inputs:
                linear.register_forward_pre_hook(
                    lambda _, given: inputs.rounded(given[0].float()).double()
                )
            packed = Panels(formats[name]).pack(weight)
            stored |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        self.stored = [stored[name] for name in self.block.parameters()]
        self.caches = torch.randn(2, *self.block.cache)
        self.run_on(CPU)

    def run_on(self, target: Target) -> None:
        """Load the module for a target."""
        self.module = Loaded(self.code, target)
        self.parameters = [self.module.put(tensor) for tensor in self.stored]

    def error(self, position: int) -> float:
        """Of the block's result and of what it writes into the caches, at one position."""
        hidden = torch.randn(1, 1, HIDDEN)
        cos, sin = self.rotary(hidden.double(), torch.tensor([[position]]))
        low = 0 if self.window is None else max(0, position - self.window + 1)
        past = Past(*self.caches[..., :position, :].double(), low)
        with torch.no_grad():
            expected = self.layer(
                hidden.double(), past_key_values=past, position_embeddings=(cos, sin)
            )
        keys, values = (self.module.put(cache.clone()) for cache in self.caches)
        given = [hidden, cos.float(), sin.float(), torch.tensor([position])]
        arguments = [*map(self.module.put, given), keys, values, *self.parameters]
        found = self.module.call(self.block.function, arguments)
        errors = [relative_error(self.module.fetch(found), expected.float())]
        for buffer, cache, new in zip(
            (keys, values), self.caches, (past.key, past.value), strict=True
        ):
            wanted = cache.clone()
            wanted[:, :, position] = new[:, :, 0].float()
            errors.append(relative_error(self.module.fetch(buffer), wanted))
        return max(errors)


class Past:
    """The cache of the library's layer: earlier positions from `low` on, and the new one."""

    def __init__(self, keys: Tensor, values: Tensor, low: int) -> None:
        self.keys, self.values, self.low = keys, values, low

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.key, self.value = key, value
        return (
            torch.cat([self.keys, key], 2)[:, :, self.low :],
            torch.cat([self.values, value], 2)[:, :, self.low :],
        )


def weights_of(make_weight: Make, *kind: object) -> dict[str, CompressedWeight]:
    return {name: scaled(make_weight(SHAPES[name.split(".")[1]], *kind)) for name in LINEARS}


@pytest.mark.parametrize(("kind", "pattern", "rank"), FORMATS)
def test_a_block_is_the_librarys_in_float64(
    make_weight: Make, flavour: Any, kind: str, pattern: str | None, rank: int
) -> None:
    case = Case(weights_of(make_weight, kind, pattern, rank), flavour)
    # Nothing cached; vectors of scores that are not full, full, and one more; the last place.
    assert max(case.error(position) for position in (0, 1, 15, 16, 17, LONGEST - 1)) < 1e-5


@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_window_hides_what_is_before_it(make_weight: Make, flavour: Any, window: int) -> None:
    case = Case(weights_of(make_weight, "int8 channel"), flavour, window)
    assert max(case.error(position) for position in (0, 6, 7, 30)) < 1e-5


def test_formats_may_differ_within_a_block(make_weight: Make, flavour: Any) -> None:
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    weights["self_attn.k_proj"] = scaled(make_weight(SHAPES["k_proj"], "bfloat16"))
    weights["mlp.up_proj"] = scaled(make_weight(SHAPES["up_proj"], "int8 tensor", None, 3))
    assert Case(weights, flavour).error(9) < 1e-5


def test_scaled_inputs_are_scaled_for_their_linear_only(make_weight: Make, flavour: Any) -> None:
    weights = weights_of(make_weight, "int4 group 32")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        scale = (torch.rand(SHAPES[name.split(".")[1]][1]) + 0.5).half()
        weights[name] = replace(weights[name], input_scale=scale)
    assert Case(weights, flavour).error(9) < 1e-5


def test_inputs_declared_of_8_bits_are_rounded(make_weight: Make) -> None:
    if host_flavour() == "floats":
        pytest.skip("rounded inputs are digits, which need AVX-512 VNNI and VBMI2")
    case = Case(weights_of(make_weight, "int4 group 32"), "digits", inputs=InputFormat("int8", 32))
    # The last bit of a float decides which of two codes an input gets; a wrong formula is far off.
    assert case.error(9) < 5e-3


def test_all_phases_end_when_one_worker_is_all_there_is(make_weight: Make) -> None:
    case = Case(weights_of(make_weight, "int4 group 32", "2:4", 5), host_flavour())
    case.run_on(replace(CPU, driver="local-sync"))
    assert case.error(17) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind", "pattern", "rank", "reason"),
    [
        ("mlp.up_proj", "int4 group 12", None, 0, "its inputs are padded"),
        ("mlp.down_proj", "int4 channel", None, 0, None),
    ],
)
def test_what_a_block_does_not_take_is_said(
    make_weight: Make, name: str, kind: str, pattern: str | None, rank: int, reason: str | None
) -> None:
    weights = weights_of(make_weight, "int4 group 32")
    weights[name] = make_weight(SHAPES[name.split(".")[1]], kind, pattern, rank)
    formats = {key: format_of(weight) for key, weight in weights.items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    found = block_refusal(BlockFormat(HIDDEN, heads, 1e-6, formats), "floats")
    assert found == (f"{name}: {reason}" if reason else None)


def test_heads_of_16_are_refused(make_weight: Make) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    block = BlockFormat(HIDDEN, Heads(6, 2, 16, LONGEST, None, 0.25), 1e-6, formats)
    assert "a head is not a multiple of 32 wide" in str(block_refusal(block, "floats"))


def test_equal_blocks_have_one_function_and_others_another(make_weight: Make) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    block = BlockFormat(HIDDEN, heads, 1e-6, formats)
    assert replace(block, linears=dict(formats)).function == block.function
    others = [replace(block, epsilon=1e-5), replace(block, heads=replace(heads, window=3))]
    assert len({block.function, *(other.function for other in others)}) == 3
