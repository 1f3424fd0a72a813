"""A turned residual stream: harness/compress/rotation.py, harness/models/rotating.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.compress import plan, rotation
from trinity.harness.compress.preparing import prepare
from trinity.harness.compress.walk import Walk
from trinity.harness.models import families as rows
from trinity.harness.models.decoder import Decoder
from trinity.harness.models.rotating import Rotation
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError, PluginError, UnsupportedError
from trinity.methods.formats import InputFormat
from trinity.methods.formats.hadamard import hadamard
from trinity.methods.quarot import QUAROT, QuarotConfig

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))
TURNED = [name for name in families.CONFIGS if rows.BUILT_IN[name].stream is not None]
STEP = {"method": "quarot"}


def _compressed(
    folder: Path, store: Path, steps: list[dict[str, Any]], ids: Tensor | None = IDS
) -> tuple[Decoder, list[Path]]:
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    made = plan.make(CompressSpec.model_validate({"steps": steps}), decoder.layer_shapes())
    rotation.check(made.rotation, decoder)
    made = rotation.with_turned_inputs(made, decoder)
    stages = StageStore(store)
    ready = prepare(decoder, made, ids, stages, {}, lambda what, done, of: None)
    walk = Walk(decoder, ready.plan, ids, stages, ready.inputs, ready.gradients)
    return decoder, walk.run(lambda done, of: None)


def _declared(decoder: Decoder, steps: list[dict[str, Any]]) -> Mapping[str, InputFormat]:
    """What a checkpoint of these steps says of inputs."""
    made = plan.make(CompressSpec.model_validate({"steps": steps}), decoder.layer_shapes())
    return rotation.with_turned_inputs(made, decoder).inputs


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("online", ["none", "projections"])
@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
@pytest.mark.parametrize("family", TURNED)
def test_a_turned_model_of_other_weights_gives_the_logits_of_the_original(
    tmp_path: Path, family: str, kind: str, online: str
) -> None:
    model = families.save(family, tmp_path / "model")
    steps = [{**STEP, "kind": kind, "online": online}]
    decoder, blocks = _compressed(tmp_path / "model", tmp_path / "store", steps)
    (tmp_path / "out").mkdir()
    checkpoint.write(tmp_path / "out", decoder, blocks, {}, _declared(decoder, steps))
    found = Checkpoint.open(tmp_path / "out").load_model()
    torch.testing.assert_close(_logits(found), _logits(model), rtol=1e-3, atol=1e-4)
    before, after = dict(model.named_parameters()), dict(found.named_parameters())
    for name in decoder.layer_names(0):
        assert not torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"], rtol=0.05)
    assert not found.config.tie_word_embeddings


def test_each_tensor_is_that_of_the_definition(tmp_path: Path) -> None:
    """Oracle: in float64, by hand."""
    model = families.save("llama", tmp_path / "model", attention_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(tmp_path / "model")
    own = {name: p.detach().double() for name, p in model.named_parameters()}
    own["lm_head.weight"] = own["model.embed_tokens.weight"]
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    made = QUAROT.rotation(32, QuarotConfig())
    decoder.rotate(Rotation(made))
    decoder.load_outside_blocks()
    decoder.load("model.layers.1")
    Q, block = made.double(), "model.layers.1."
    norms = [own[f"{block}{n}_layernorm.weight"] for n in ("input", "post_attention")]
    expected = {
        "model.embed_tokens.weight": own["model.embed_tokens.weight"] @ Q,
        "lm_head.weight": own["lm_head.weight"] * own["model.norm.weight"] @ Q,
        "model.norm.weight": torch.ones(32),
        f"{block}self_attn.q_proj.weight": own[f"{block}self_attn.q_proj.weight"] * norms[0] @ Q,
        f"{block}self_attn.q_proj.bias": own[f"{block}self_attn.q_proj.bias"],
        f"{block}self_attn.o_proj.weight": Q.T @ own[f"{block}self_attn.o_proj.weight"],
        f"{block}self_attn.o_proj.bias": own[f"{block}self_attn.o_proj.bias"] @ Q,
        f"{block}mlp.up_proj.weight": own[f"{block}mlp.up_proj.weight"] * norms[1] @ Q,
        f"{block}mlp.down_proj.weight": Q.T @ own[f"{block}mlp.down_proj.weight"],
        f"{block}input_layernorm.weight": torch.ones(32),
    }
    for name, tensor in expected.items():
        found = decoder.model.get_parameter(name).double()
        torch.testing.assert_close(found, tensor.double(), rtol=1e-5, atol=1e-5)


def test_inputs_that_are_turned_as_the_model_runs_have_the_inverse_in_the_weight(
    tmp_path: Path,
) -> None:
    """Oracle: in float64, by the matrix written out; and what the linear then reads."""
    model = families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    declared = _declared(decoder, [{**STEP, "online": "projections"}])
    shapes = decoder.layer_shapes()
    writing = [name for name in shapes if name.endswith(("o_proj", "down_proj"))]
    assert {name: of.turned for name, of in declared.items()} == {n: shapes[n][1] for n in writing}
    made = QUAROT.rotation(32, QuarotConfig())
    decoder.rotate(Rotation(made, declared))
    decoder.load("model.layers.1")
    for name in (name for name in writing if ".1." in name):
        W = model.get_parameter(f"{name}.weight").detach().double()
        H = hadamard(shapes[name][1])
        assert H is not None
        expected = made.double().T @ W @ H.double() / shapes[name][1] ** 0.5
        linear = decoder.model.get_submodule(name)
        torch.testing.assert_close(linear.weight.double(), expected, rtol=1e-5, atol=1e-5)
        x = torch.randn(2, 3, W.shape[1])
        expected = x.double() @ W.T @ made.double()
        torch.testing.assert_close(linear(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_turned_inputs_and_rounding_comes_after(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    steps = [{**STEP, "online": "projections"}, {"method": "gptq", "bits": 8, "group_size": 16}]
    spec = {"steps": steps, "inputs": {"kind": "int8"}}
    decoder, blocks = _compressed(tmp_path / "model", tmp_path / "store", steps)
    report = json.loads((blocks[1] / "layers.json").read_text("utf-8"))
    assert all(found["relative_error"] < 0.02 for found in report.values())
    made = plan.make(CompressSpec.model_validate(spec), decoder.layer_shapes())
    declared = rotation.with_turned_inputs(made, decoder).inputs
    assert declared["model.layers.0.mlp.down_proj"].label == "turned by 48 int8 token"
    assert declared["model.layers.0.mlp.up_proj"].label == "int8 token"
    (tmp_path / "out").mkdir()
    checkpoint.write(tmp_path / "out", decoder, blocks, {}, declared)
    opened = Checkpoint.open(tmp_path / "out")
    assert opened.inputs == declared
    original = _logits(families.save("llama", tmp_path / "again"))
    found = _logits(opened.load_model())
    assert float((found - original).norm() / original.norm()) < 0.05


def test_scales_that_would_pass_a_turned_input_are_refused(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    steps = [{**STEP, "online": "projections"}, {"method": "smoothquant"}]
    with pytest.raises(ConfigError, match="smoothquant would move scales of these"):
        _compressed(tmp_path / "model", tmp_path / "store", steps)


def test_inputs_without_a_matrix_are_refused_by_name(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model", intermediate_size=92)
    with pytest.raises(ConfigError, match=r"no Hadamard matrix of 92 rows .*layers\.0\.mlp\.down"):
        _compressed(tmp_path / "model", tmp_path / "store", [{**STEP, "online": "projections"}])


def test_what_follows_compresses_the_turned_weights(tmp_path: Path) -> None:
    """Scales that are moved, and a quantizer: nothing knows that the model was turned."""
    original = _logits(families.save("llama", tmp_path / "model"))
    steps = [STEP, {"method": "smoothquant"}, {"method": "gptq", "bits": 8, "group_size": 16}]
    decoder, blocks = _compressed(tmp_path / "model", tmp_path / "store", steps)
    report = json.loads((blocks[1] / "layers.json").read_text("utf-8"))
    assert all(found["relative_error"] < 0.02 for found in report.values())
    (tmp_path / "out").mkdir()
    checkpoint.write(tmp_path / "out", decoder, blocks, {})
    found = _logits(Checkpoint.open(tmp_path / "out").load_model())
    assert float((found - original).norm() / original.norm()) < 0.05


def test_the_proof_is_a_stage_that_other_recipes_share(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    for bits in (4, 8):
        steps = [STEP, {"method": "rtn", "bits": bits, "group_size": 16}]
        _compressed(tmp_path / "model", tmp_path / "store", steps)
    (proof,) = (tmp_path / "store").rglob(rotation.FILE)
    assert 0 < json.loads(proof.read_text("utf-8"))["largest"] < 1e-5


def test_what_is_no_identity_is_refused_with_the_name_of_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StableLM's norms subtract means: what is said of Llama is not true of it."""
    families.save("stablelm", tmp_path / "model")
    monkeypatch.setitem(rows.BUILT_IN, "stablelm", rows.BUILT_IN["llama"])  # type: ignore[misc]  # a dict beneath
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0: quarot turned the residual"):
        _compressed(tmp_path / "model", tmp_path / "store", [STEP])


@pytest.mark.parametrize("family", ["opt", "stablelm", "gemma2"])
def test_a_family_whose_norms_do_not_commute_is_refused_before(tmp_path: Path, family: str) -> None:
    families.save(family, tmp_path / "model")
    with pytest.raises(UnsupportedError, match="quarot: the residual stream of a"):
        _compressed(tmp_path / "model", tmp_path / "store", [STEP])


def test_a_width_without_a_matrix_is_refused_before(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model", hidden_size=92, head_dim=8)
    with pytest.raises(ConfigError, match="quarot: no Hadamard matrix of 92 rows is known here"):
        _compressed(tmp_path / "model", tmp_path / "store", [STEP])


def test_without_calibration_nothing_can_be_proven(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match="quarot: the recipe has no calibration data"):
        _compressed(tmp_path / "model", tmp_path / "store", [STEP], None)


@pytest.mark.parametrize(
    "spec",
    [
        {"steps": [{"method": "rtn", "group_size": 16}, STEP]},
        {"steps": [STEP, STEP]},
        {"steps": [], "layers": {"*.mlp.*": [STEP]}},
    ],
    ids=str,
)
def test_it_is_the_first_step_of_a_recipe_or_refused(spec: dict[str, Any]) -> None:
    shapes = {"model.layers.0.mlp.up_proj": (32, 32)}
    with pytest.raises(ConfigError, match="turns the whole model before anything else"):
        plan.make(CompressSpec.model_validate(spec), shapes)


class _Stretching:
    name, paper, config = "stretching", "none", MethodConfig

    def problem(self, width: int, config: MethodConfig) -> str | None:
        return None

    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        return 2 * torch.eye(width)


def test_a_matrix_that_is_not_orthogonal_is_the_fault_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    original, made = registry.get, _Stretching()
    monkeypatch.setattr(registry, "get", lambda n: made if n == made.name else original(n))
    with pytest.raises(PluginError, match=r"'stretching' .* not orthogonal"):
        _compressed(tmp_path / "model", tmp_path / "store", [{"method": "stretching"}])
