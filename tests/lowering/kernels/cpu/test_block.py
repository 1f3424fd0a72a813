"""Kernels of whole decoder blocks against the library's own block in float64."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.lowering.kernels import arm
from tests.lowering.kernels.portable import compiled
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.block import block_kernels, block_refusal
from trinity.lowering.kernels.cpu.flavour import host_instructions
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour
from trinity.lowering.kernels.decoder_parts import LINEARS, NORMS, BlockFormat, Heads
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import (
    CompressedWeight,
    InputFormat,
    Quantized,
    WithOutliers,
    format_of,
)

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
# Each format with one flavour that has dot products and each kind of entry without; that a format's
# product is right in every flavour is tested of the same text in `test_flavours.py` and
# `test_product.py`.
FORMATS: list[tuple[Flavour, str, str | None, int]] = [
    ("avx512-vnni", "int4 group 32", "2:4", 5),
    ("avx512-vnni", "int8 tensor", "50%", 0),
    ("avx512-vnni", "int2 group 16", None, 3),
    ("avx512-vnni", "float16", "50%", 3),
    ("avx2", "int4 group 32", None, 0),
    ("avx2", "int4 group 32", "2:4", 5),
    ("avx2", "int3 group 32 asymmetric", None, 0),
    ("avx2", "bfloat16", None, 7),
    ("plain", "int4 group 32", "2:4", 5),
    ("plain", "int8 tensor", "50%", 0),
    ("plain", "int2 group 16", None, 3),
    ("plain", "float16", "50%", 3),
]


def scaled(weight: CompressedWeight) -> CompressedWeight:
    """The same weight with entries small enough that a block does not blow up."""
    if isinstance(weight, Quantized):
        return replace(weight, scale=weight.scale / 2**weight.bits / 3)
    if isinstance(weight, WithOutliers):
        return replace(weight, base=scaled(weight.base), values=weight.values / 9)
    if hasattr(weight, "base"):
        return replace(weight, base=scaled(weight.base), B=weight.B / 9, A=weight.A / 9)
    if hasattr(weight, "mask"):
        return replace(weight, values=scaled(weight.values))
    return replace(weight, values=weight.values / 9)  # type: ignore[call-arg, union-attr]


@pytest.fixture(params=["avx512-vnni", "avx2", "plain"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    return found


def here(text: str, flavour: Flavour, target: Target = CPU) -> Loaded:
    """On this machine, what it lacks written out."""
    return Loaded(compiled(text, flavour, CPU), target)


class Case:
    """One block, its compiled kernel, and the library's layer with the same weights in float64."""

    def __init__(
        self,
        weights: dict[str, CompressedWeight],
        flavour: Flavour,
        window: int | None = None,
        inputs: InputFormat | None = None,
        load: Callable[[str, Flavour], Loaded | arm.Emulated] = here,
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
        assert block_refusal(self.block, INSTRUCTIONS[flavour]) is None
        kernels = block_kernels(self.block, INSTRUCTIONS[flavour])
        text = with_kernels("module {\n}\n", [kernels]).replace("func.func private", "func.func")
        self.module = load(text, flavour)
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
            packed = INSTRUCTIONS[flavour].panels(formats[name]).pack(weight)
            stored |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        names = self.block.parameters(INSTRUCTIONS[flavour].panels)
        self.stored = [stored[name] for name in names]
        self.caches = torch.randn(2, *self.block.heads.cache)

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
        given = [hidden, cos.float(), sin.float(), torch.tensor([position])]
        arguments = [*given, *(cache.clone() for cache in self.caches), *self.stored]
        found, *caches = arm.with_caches(self.module, self.block.function, arguments, 4)
        errors = [relative_error(found, expected.float())]
        for written, cache, new in zip(caches, self.caches, (past.key, past.value), strict=True):
            wanted = cache.clone()
            wanted[:, :, position] = new[:, :, 0].float()
            errors.append(relative_error(written, wanted))
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


@pytest.mark.parametrize(("flavour", "kind", "pattern", "rank"), FORMATS)
def test_a_block_is_the_librarys_in_float64(
    make_weight: Make, flavour: Flavour, kind: str, pattern: str | None, rank: int
) -> None:
    case = Case(weights_of(make_weight, kind, pattern, rank), flavour)
    # Nothing cached; vectors of scores that are not full, full, and one more; the last place.
    assert max(case.error(position) for position in (0, 1, 15, 16, 17, LONGEST - 1)) < 1e-5


# Attention's text is the same in every flavour.
@pytest.mark.parametrize(("flavour", "window"), [("avx512-vnni", 1), ("avx2", 7), ("plain", 64)])
def test_a_window_hides_what_is_before_it(make_weight: Make, flavour: Flavour, window: int) -> None:
    case = Case(weights_of(make_weight, "int8 channel"), flavour, window)
    assert max(case.error(position) for position in (0, 6, 7, 30)) < 1e-5


def test_formats_may_differ_within_a_block(make_weight: Make, flavour: Flavour) -> None:
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    weights["self_attn.k_proj"] = scaled(make_weight(SHAPES["k_proj"], "bfloat16"))
    weights["mlp.up_proj"] = scaled(make_weight(SHAPES["up_proj"], "int8 tensor", None, 3))
    assert Case(weights, flavour).error(9) < 1e-5


def test_outliers_are_part_of_their_linear(make_weight: Make, flavour: Flavour) -> None:
    weights = weights_of(make_weight, "int4 group 32", None, 0, torch.float32, 3)
    weights["mlp.up_proj"] = scaled(
        make_weight(SHAPES["up_proj"], "int4 group 32", "2:4", 3, torch.float32, 2)
    )
    assert Case(weights, flavour).error(9) < 1e-5


def test_outliers_and_rounded_inputs_are_refused(make_weight: Make) -> None:
    weights = weights_of(make_weight, "int4 group 32", None, 0, torch.float32, 3)
    rounding = InputFormat("int8", 32)
    formats = {n: replace(format_of(w), inputs=rounding) for n, w in weights.items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    found = block_refusal(BlockFormat(HIDDEN, heads, 1e-6, formats), INSTRUCTIONS["avx2"])
    assert "its outliers are multiplied as floats" in str(found)


def test_scaled_inputs_are_scaled_for_their_linear_only(
    make_weight: Make, flavour: Flavour
) -> None:
    weights = weights_of(make_weight, "int4 group 32")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        scale = (torch.rand(SHAPES[name.split(".")[1]][1]) + 0.5).half()
        weights[name] = replace(weights[name], input_scale=scale)
    assert Case(weights, flavour).error(9) < 1e-5


def test_inputs_declared_of_8_bits_are_rounded(make_weight: Make) -> None:
    case = Case(weights_of(make_weight, "int4 group 32"), "avx2", inputs=InputFormat("int8", 32))
    # The last bit of a float decides which of two codes an input gets; a wrong formula is far off.
    assert case.error(9) < 5e-3


def test_all_phases_end_when_one_worker_is_all_there_is(make_weight: Make) -> None:
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    alone = partial(here, target=replace(CPU, driver="local-sync"))
    assert Case(weights, host_instructions().flavour, load=alone).error(17) < 1e-5


def test_a_block_runs_on_an_emulated_arm_processor(make_weight: Make) -> None:
    arm.require()
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    case = Case(weights, "neon-i8mm", load=partial(arm.loaded, driver="local-task"))
    assert max(case.error(position) for position in (0, 17)) < 1e-5


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
    found = block_refusal(BlockFormat(HIDDEN, heads, 1e-6, formats), INSTRUCTIONS["plain"])
    assert found == (f"{name}: {reason}" if reason else None)


def test_heads_of_16_are_refused(make_weight: Make) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    block = BlockFormat(HIDDEN, Heads(6, 2, 16, LONGEST, None, 0.25), 1e-6, formats)
    assert "a head is not a multiple of 32 wide" in str(block_refusal(block, INSTRUCTIONS["plain"]))


def test_equal_blocks_have_one_function_and_others_another(make_weight: Make) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    block = BlockFormat(HIDDEN, heads, 1e-6, formats)
    assert replace(block, linears=dict(formats)).function == block.function
    others = [replace(block, epsilon=1e-5), replace(block, heads=replace(heads, window=3))]
    assert len({block.function, *(other.function for other in others)}) == 3
