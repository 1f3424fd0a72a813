"""Whole models: every family equal to torch in prefill and decode, weights packed all the way."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.lowering.built import LENGTHS, LONGEST, Built, build, decoded, dense_logits, tokens
from tests.lowering.kernels import arm
from trinity.lowering import names
from trinity.lowering.graph import attention
from trinity.lowering.graph.operators.linear import packed_linears
from trinity.lowering.graph.stand_ins import replaced
from trinity.lowering.lower import export, export_key, lower
from trinity.lowering.module import check, devices
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import CompiledModel
from trinity.lowering.parameters import write_parameters
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.errors import ConfigError, LoweringError
from trinity.methods.formats import CompressedWeight, Quantized, Sparse, format_of

Decoder = Callable[..., nn.Module]
Compress = Callable[..., dict[str, CompressedWeight]]


@pytest.fixture(scope="module")
def packed(
    make_decoder: Decoder, compress_block: Compress, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """A tied Llama, one block 2:4 int4 with adapters, the other asymmetric int3."""
    model = make_decoder("llama")
    weights = compress_block(model, 0, "int4 group 16", "2:4", 3, torch.float16)
    weights |= compress_block(model, 1, "int3 channel asymmetric")
    return build(model, weights, "llvm-cpu", tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def batched(packed: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same for three sequences at once."""
    folder = tmp_path_factory.mktemp("batched")
    return build(packed.model, packed.weights, "llvm-cpu", folder, batch=3)


# They differ from the others in what compiles alike: a row each, when all are asked for.
MORE = ("gptj", "phi", "phi3", "stablelm", "olmo", "olmo2", "cohere", "gemma", "granite", "smollm3")
MOST = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt", "gpt2", "gpt_neox", "falcon")


@pytest.mark.parametrize(
    "family", [*MOST, *(pytest.param(family, marks=pytest.mark.slow) for family in MORE)]
)
def test_a_family_equals_torch_in_prefill_and_token_by_token(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path, family: str
) -> None:
    model = make_decoder(family)
    built = build(model, compress_block(model, 1, "int4 channel"), "llvm-cpu", tmp_path)
    ids = tokens(LONGEST)
    expected, compiled = dense_logits(built, ids), built.load()
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 3), expected[:, 2:]) < 1e-5


@pytest.mark.slow
def test_a_model_for_an_arm_processor_equals_torch_on_an_emulated_one(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path
) -> None:
    arm.require()
    kind, processor = arm.CPUS["neon-dot"]
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    model = make_decoder("llama", max_position_embeddings=64, **sizes)
    weights = compress_block(model, 0, "int4 group 16", "2:4", 3, torch.float16)
    weights |= compress_block(model, 1, "int4 group 32")
    built = build(model, weights, "llvm-cpu", tmp_path, lengths=(1, 16), longest=64, cpu=kind)
    meta, ids = built.lowered.meta, tokens(16)
    assert (meta["path"], meta["cpu"], meta["flavour"]) == ("kernel", kind, "neon-dot")
    assert all(f"@{name}_" in built.lowered.target for name in ("block", "attention_16"))
    module = arm.Emulated(built.lowered.vmfb, processor, "local-task", built.parameters)
    expected, caches = dense_logits(built, ids), [torch.zeros(meta["cache"])] * meta["caches"]
    hidden = module.call(names.trunk(16), [ids, torch.arange(16), *caches])
    assert check.relative_error(module.call(names.head(16), [hidden]), expected) < 1e-5
    first = module.call(names.STEP, [ids[:, :1], torch.arange(1), *caches])
    assert check.relative_error(first[:, -1], expected[:, 0]) < 1e-5


@pytest.mark.parametrize("kind", ["bfloat16", "int8 group 32"])
def test_a_head_and_an_embedding_stored_narrower_give_the_same_logits(
    make_decoder: Decoder,
    compress_block: Compress,
    make_weight: Callable[..., CompressedWeight],
    tmp_path: Path,
    kind: str,
) -> None:
    model = make_decoder("llama", num_hidden_layers=1)
    shared = model.get_submodule("model.embed_tokens")
    narrow = make_weight(tuple(shared.weight.shape), kind, scale_dtype=torch.float16)
    with torch.no_grad():
        shared.weight.copy_(narrow.dequantize())
    weights = compress_block(model, 0, "int4 channel")
    heads, tables = {"lm_head": narrow}, {"model.embed_tokens": narrow}
    built = build(model, weights, "llvm-cpu", tmp_path, heads=heads, tables=tables)
    assert not any("weight" in n and "embed" in n for n in built.lowered.parameters)
    ids = tokens(LONGEST)
    expected, compiled = dense_logits(built, ids), built.load()
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 3), expected[:, 2:]) < 1e-5


def test_packed_blocks_equal_torch_in_prefill_and_token_by_token(packed: Built) -> None:
    ids = tokens(LONGEST)
    expected = dense_logits(packed, ids)
    assert check.relative_error(packed.load().logits(ids), expected) < 1e-5
    errors = check.verify(packed.load(), packed.model, packed.weights, ids)
    assert max(errors.values()) < 1e-5


def test_scales_that_are_codes_and_outliers_equal_torch_token_by_token(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    model = make_decoder("llama", **sizes)
    weights = compress_block(model, 0, "nested 3 group 16", None, 0, torch.float16, 4)
    weights |= compress_block(model, 1, "nested 4 group 16", None, 0, torch.float16)
    built = build(model, weights, "llvm-cpu", tmp_path)
    assert built.load().path == "kernel"
    assert "@block_" in built.lowered.target
    ids = tokens(LONGEST)
    expected, compiled = dense_logits(built, ids), built.load()
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 3), expected[:, 2:]) < 1e-5


def test_prefill_may_continue_a_filled_cache_in_pieces_of_any_length(packed: Built) -> None:
    ids = tokens(LONGEST)
    expected, session = packed.load().logits(ids), packed.load().session()
    for part in ids.split([1, 9, 2, 8, 1], dim=1):
        last = session.prefill(part)
    assert check.relative_error(last, expected[:, -1]) < 1e-5


def test_what_comes_later_never_changes_earlier_logits(packed: Built) -> None:
    ids = tokens(LONGEST)
    compiled = packed.load()
    assert torch.equal(compiled.logits(ids[:, :11]), compiled.logits(ids)[:, :11])


def test_a_sequence_longer_than_the_module_is_refused(packed: Built) -> None:
    with pytest.raises(ConfigError, match=r"22 tokens does not fit the module.* 1 to 21"):
        packed.load().logits(tokens(LONGEST + 1))


def test_several_sequences_get_what_each_gets_alone(packed: Built, batched: Built) -> None:
    ids = tokens(LONGEST, batch=3)
    expected, compiled = dense_logits(batched, ids), batched.load()
    alone = torch.cat([packed.load().logits(sequence[None]) for sequence in ids])
    assert check.relative_error(compiled.logits(ids), alone) < 1e-5
    assert check.relative_error(compiled.logits(ids), expected) < 1e-5
    assert check.relative_error(decoded(compiled.session(), ids, 11), expected[:, 10:]) < 1e-5
    assert max(check.verify(compiled, batched.model, batched.weights, ids).values()) < 1e-5


def test_several_sequences_pass_transposed_linears_and_learned_positions(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AttentionInterface.register(attention.NAME, attention.grouped_attention)
    model: Any = make_decoder("gpt2", num_hidden_layers=1)
    weights = compress_block(model, 0, "int4 channel")
    model.set_attn_implementation(attention.NAME)
    built = build(model, weights, "llvm-cpu", tmp_path, batch=2)
    model.set_attn_implementation("eager")
    ids = tokens(LONGEST, batch=2)
    assert check.relative_error(built.load().logits(ids), dense_logits(built, ids)) < 1e-5


def test_a_sequence_never_changes_what_its_neighbours_get(batched: Built) -> None:
    ids, compiled = tokens(LONGEST, batch=3), batched.load()
    other = ids.clone()
    other[1] = ids[0]
    before, after = (decoded(compiled.session(), found, 5) for found in (ids, other))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


def test_modules_for_any_batch_read_one_parameter_file(packed: Built, batched: Built) -> None:
    assert batched.lowered.parameters == packed.lowered.parameters
    assert batched.parameters.read_bytes() == packed.parameters.read_bytes()


def test_another_number_of_sequences_than_the_modules_is_refused(
    packed: Built, batched: Built
) -> None:
    with pytest.raises(ConfigError, match=r"^2 sequences do not fit the module.* for 3 at once"):
        batched.load().session().prefill(tokens(4, batch=2))
    with pytest.raises(ConfigError, match=r"^3 sequences do not fit the module.* for 1 at once"):
        packed.load().logits(tokens(4, batch=3))


def test_no_stage_holds_a_dense_weight(packed: Built) -> None:
    dense = {"x".join(map(str, weight.shape)) for weight in packed.weights.values()}
    for line in packed.lowered.storage.splitlines():
        if "ml_program.global private" in line or "arith.constant dense" in line:
            assert not any(f"tensor<{shape}xf" in line for shape in dense), line
    assert "dense_resource" not in packed.lowered.storage


def test_the_compiler_keeps_no_unpacked_weight(packed: Built) -> None:
    flow = compile_text(packed.lowered.target, packed.plan.target, ("--compile-to=flow",)).decode()
    values = re.findall(r"util\.global private @.*", flow)
    assert len(values) > len(packed.weights)
    # A weight unpacked ahead of time would be a global without a value, filled by an initializer.
    assert all("#flow.parameter.named" in value or "#hal.device" in value for value in values)
    assert "util.initializer" not in flow


def test_parameters_are_packed_weights_embeddings_and_norms(packed: Built) -> None:
    stored = load_file(packed.parameters)
    assert sorted(stored) == list(packed.lowered.parameters)
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert kept == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.rotary_emb.inv_freq",
        *(f"model.layers.{i}.input_layernorm.weight" for i in (0, 1)),
        *(f"model.layers.{i}.post_attention_layernorm.weight" for i in (0, 1)),
    }


def test_annotated_and_storage_stages_say_what_they_should(packed: Built) -> None:
    stages = packed.lowered
    assert "trinity.packed_linear" in stages.torch
    assert "!quant.uniform<u3:f32" in stages.annotated
    assert "structured[2, 4]" in stages.annotated
    assert "trinity.packed_linear" not in stages.annotated
    assert "quant." not in stages.storage
    assert "sparse_tensor" not in stages.storage


def test_weights_of_any_format_are_exported_alike(
    make_decoder: Decoder, compress_block: Compress
) -> None:
    model = make_decoder("llama", num_hidden_layers=1)
    texts: dict[str, list[str]] = {}
    for kind in (("int4 channel",), ("int8 group 16", "2:4", 3)):
        weights = compress_block(model, 0, *kind)
        formats = {name: format_of(weight) for name, weight in weights.items()}
        plan = Lowering(model.config, formats, targets.get("llvm-cpu"), (1,), 8)
        texts.setdefault(json.dumps(export_key(plan), sort_keys=True), []).append(
            export(model, plan)
        )
    ((first, second),) = texts.values()
    assert first == second
    smaller = Lowering(model.config, {}, targets.get("llvm-cpu"), (1,), 8)
    assert json.dumps(export_key(smaller), sort_keys=True) not in texts


def test_the_model_is_as_it_was_after_lowering_and_after_an_error(
    make_decoder: Decoder, compress_block: Compress
) -> None:
    model = make_decoder("llama").train()
    weights = compress_block(model, 0, "int4 channel")
    formats = {name: format_of(weight) for name, weight in weights.items()}
    layers = {name: model.get_submodule(name) for name in weights}
    made = packed_linears(model, formats)
    with pytest.raises(RuntimeError, match="stop"), replaced(model, made):  # noqa: PT012
        assert all(model.get_submodule(name) is not layer for name, layer in layers.items())
        msg = "stop"
        raise RuntimeError(msg)
    assert all(model.get_submodule(name) is layer for name, layer in layers.items())
    assert model.training


def test_a_wrong_parameter_is_an_error(
    packed: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every linear is right by itself, which `test_linalg.py` compiles each of to see.
    monkeypatch.setattr(check, "linear_error", lambda *_: 0.0)
    name = "model.layers.1.mlp.down_proj"
    weight = packed.weights[name]
    assert isinstance(weight, Quantized)
    damaged = {
        **packed.weights,
        name: Quantized(weight.codes ^ 1, weight.scale, weight.zero_point, 3),
    }
    path = tmp_path / "damaged.safetensors"
    write_parameters(path, packed.model, damaged, packed.lowered.parameters, packed.plan)
    compiled = CompiledModel(packed.folder, path, packed.plan.target)
    with pytest.raises(LoweringError, match=r"compiled logits differ from torch"):
        check.verify(compiled, packed.model, packed.weights, tokens(6))


def test_a_layer_that_keeps_more_than_its_pattern_says_is_named_and_nothing_is_written(
    make_decoder: Decoder, compress_block: Compress, tmp_path: Path
) -> None:
    model, path = make_decoder("llama"), tmp_path / "p.safetensors"
    weights = compress_block(model, 0, "float16", "50%")
    layer = "model.layers.0.mlp.up_proj"
    honest = weights[layer]
    assert isinstance(honest, Sparse)
    false = replace(honest, mask=torch.ones_like(honest.mask))
    formats = {name: format_of(weight) for name, weight in weights.items()}
    # Of a processor that expands streams: where none does, entries are stored whole.
    target = targets.get("llvm-cpu", "icelake-server")
    plan = Lowering(model.config, formats, target, LENGTHS, LONGEST)
    with pytest.raises(ConfigError, match=rf"^{re.escape(layer)}: 50% float16: the mask keeps"):
        write_parameters(path, model, weights | {layer: false}, [f"{layer}.panels"], plan)
    assert not path.exists()


def test_a_linear_that_is_wrong_by_itself_is_named_first(
    packed: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "model.layers.0.self_attn.v_proj"

    def error(weight: CompressedWeight, *_: object) -> float:
        return 1.0 if weight is packed.weights[wrong] else 0.0

    monkeypatch.setattr(check, "linear_error", error)
    found = check.blame(packed.weights, packed.plan.target, [1], "float32")
    assert str(found).startswith(f"{wrong} (2:4 int4")


def test_a_model_of_another_type_than_planned_is_refused(make_decoder: Decoder) -> None:
    model = make_decoder("llama")
    plan = Lowering(model.config, {}, targets.get("llvm-cpu"), LENGTHS, LONGEST, "float16")
    with pytest.raises(ConfigError, match=r"parameters are float32, the plan says float16"):
        lower(model, plan)


def test_a_weight_of_another_shape_is_refused_by_name(
    make_decoder: Decoder, compress_block: Compress
) -> None:
    model = make_decoder("llama")
    formats = {
        "model.layers.0.mlp.up_proj": format_of(
            compress_block(model, 0, "int4 channel")["model.layers.0.mlp.down_proj"]
        )
    }
    plan = Lowering(model.config, formats, targets.get("llvm-cpu"), LENGTHS, LONGEST)
    with pytest.raises(ConfigError, match=r"up_proj: the layer's weight is \[48, 32\]"):
        lower(model, plan)


def test_cuda_modules_hold_code_for_sm_80(packed: Built) -> None:
    formats = {name: format_of(weight) for name, weight in packed.weights.items()}
    plan = Lowering(packed.model.config, formats, targets.get("cuda"), (1,), LONGEST)
    assert b"sm_80" in lower(packed.model, plan).vmfb


def test_vulkan_runs_the_same_model_with_values_of_tables_and_outliers_too(
    packed: Built, compress_block: Compress, tmp_path: Path
) -> None:
    if not devices.available(targets.get("vulkan")):
        pytest.skip("no Vulkan device (Debian's mesa-vulkan-drivers has one that runs on the CPU)")
    kind = ("e2m1 group 16 e4m3 outer", None, 0, torch.float16, 2)
    weights = packed.weights | compress_block(packed.model, 1, *kind)
    built = build(packed.model, weights, "vulkan", tmp_path)
    assert built.load().path == "kernel"
    ids = tokens(LONGEST)
    assert check.relative_error(built.load().logits(ids), dense_logits(built, ids)) < 1e-5


def test_a_text_that_does_not_compile_says_where(packed: Built) -> None:
    with pytest.raises(LoweringError, match=r"target llvm-cpu: iree-compile refused .*line 1:"):
        compile_text("func.func @f() { nonsense }", packed.plan.target)


def test_grouped_attention_is_the_librarys_own(make_decoder: Decoder) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AttentionInterface.register(attention.NAME, attention.grouped_attention)
    for family in ("llama", "gemma2", "qwen3"):
        model, ids = make_decoder(family), tokens(LONGEST, batch=2)
        with torch.no_grad():
            expected = model(ids).logits
            model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
            plain = torch.zeros(1, 1, LONGEST, LONGEST)
            mask = plain.masked_fill(torch.ones_like(plain).triu(1) > 0, -1e9)
            near = mask.masked_fill(torch.ones_like(plain).tril(-5) > 0, -1e9)
            masks = {"full_attention": mask, "sliding_attention": near}
            given = masks if family == "gemma2" else mask
            found = model(ids, attention_mask=given).logits
        assert torch.allclose(found, expected, atol=1e-5)
