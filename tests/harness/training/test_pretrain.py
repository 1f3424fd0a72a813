"""harness/training/pretrain.py: a short real training run, and its checkpoint
through the whole path.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.harness import families
from tests.harness.tiny import ByteTokenizer
from trinity.harness.checkpoints import checkpoint
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.runs import requests
from trinity.harness.runs.outputs import compress_to
from trinity.harness.sources.sources import resolve
from trinity.harness.sources.torch_checkpoints import state_dict
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training import pretrain
from trinity.harness.training.slope_linear import SlopeLinear
from trinity.harness.training.workers import alone
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, Dense

QUIET = Reporter(quiet=True)
STEPS = 12


class SmallTokenizer(ByteTokenizer):
    """Bytes, folded into the 96 tokens of the test models."""

    def __call__(self, text: str, **options: Any) -> Any:
        return {"input_ids": [code % 96 for code in text.encode()[:20_000]]}


def _train(folder: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts before and after training."""
    start, out = folder / "start", folder / "out"
    if not start.exists():
        families.save("llama", start)
    out.mkdir()
    spec = TrainingSpec(steps=STEPS, batch=4, seqlen=16, **options)
    begin = pretrain.Start(start, "of a test")
    pretrain.train(begin, SmallTokenizer(), spec, out, alone(torch.device("cpu")), QUIET)
    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    return before, state_dict(out / f"ckpt_{STEPS}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("slope")
    return folder / "out", *_train(folder, pattern="2:4", rank=2, adapter_share=0.25)


def _sparse(name: str) -> bool:
    first = name.startswith("model.layers.0.self_attn.") and "o_proj" not in name
    return "_proj.weight" in name and not first


def test_sparse_weights_are_two_of_four_after_training_with_one_support(trained: Any) -> None:
    _, before, after = trained
    names = [name for name in after if _sparse(name)]
    assert len(names) == 11
    for name in names:
        kept = (after[name] != 0).view(after[name].shape[0], -1, 4).sum(-1)
        assert set(kept.unique().tolist()) == {2}
        moved = (after[name] - before[name])[after[name] != 0]
        assert bool((moved != 0).all())


def test_the_first_linears_embeddings_and_norms_are_trained_dense(trained: Any) -> None:
    _, before, after = trained
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        assert bool((after[name] != 0).all())
        assert not torch.equal(after[name], before[name])
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])


def test_the_layout_is_the_released_one(trained: Any) -> None:
    folder, before, after = trained
    data = torch.load(folder / f"ckpt_{STEPS}.pt", weights_only=True)
    assert {"model", "optimizer", "sampler", "epoch"} <= set(data)
    added = set(after) - set(before)
    names = {name.removesuffix(".weight") for name in after if _sparse(name)}
    assert added == {f"{name}.{part}" for name in names for part in ("lora_left", "lora_right")}
    assert after["model.layers.1.mlp.down_proj.lora_left"].shape == (48, 2)
    assert after["model.layers.1.mlp.down_proj.lora_right"].shape == (2, 32)


def test_optimiser_moments_of_sparse_layers_hold_kept_entries_only(trained: Any) -> None:
    folder, _, after = trained
    data = torch.load(folder / f"ckpt_{STEPS}.pt", weights_only=True)
    for name, moments in data["optimizer"]["sparse"].items():
        assert len(moments["m"]) == int((after[f"{name}.weight"] != 0).sum())


def test_adapters_are_trained_from_the_step_they_are_added(trained: Any) -> None:
    _, _, after = trained
    rights = [tensor for name, tensor in after.items() if name.endswith("lora_right")]
    assert all(bool(right.any()) for right in rights)


def test_a_run_repeats_bit_for_bit(tmp_path: Path, trained: Any) -> None:
    _, _, again = (
        trained[0],
        trained[1],
        _train(tmp_path, pattern="2:4", rank=2, adapter_share=0.25)[1],
    )
    assert all(torch.equal(again[name], tensor) for name, tensor in trained[2].items())


def test_the_magnitude_mask_keeps_the_largest_at_initialisation(tmp_path: Path) -> None:
    before, after = _train(tmp_path, pattern="2:4", mask="magnitude")
    name = "model.layers.1.mlp.up_proj.weight"
    groups = before[name].abs().view(48, -1, 4)
    kept = (after[name] != 0).view(48, -1, 4)
    assert bool(
        (groups.masked_fill(~kept, 9).amin(-1) >= groups.masked_fill(kept, 0).amax(-1)).all()
    )


def test_training_without_a_pattern_is_plain_dense_training(tmp_path: Path) -> None:
    before, after = _train(tmp_path)
    assert set(before) == set(after)
    assert bool((after["model.layers.1.mlp.up_proj.weight"] != 0).all())
    losses = json.loads((tmp_path / "out" / "training.json").read_text())["losses"]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]


def test_the_layer_with_an_exact_backward_equals_plain_autograd() -> None:
    linear = torch.nn.Linear(16, 8)
    mask = torch.rand(8, 4, 4).argsort(-1).lt(2).view(8, 16)
    layer = SlopeLinear(linear, mask, NM(2, 4), exact=True)
    plain = torch.nn.Linear(16, 8)
    plain.load_state_dict({"weight": layer.weight, "bias": linear.bias})
    x, y = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16, requires_grad=True)
    y.data.copy_(x.data)
    layer(x).square().sum().backward()
    plain(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert layer.weight.grad is not None
    assert plain.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad * mask)


def test_named_layers_stay_dense(tmp_path: Path) -> None:
    _, after = _train(tmp_path, pattern="2:4", dense=("model.layers.1.mlp.*",))
    assert bool((after["model.layers.1.mlp.up_proj.weight"] != 0).all())
    assert bool((after["model.layers.0.mlp.up_proj.weight"] == 0).any())
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ConfigError, match="no linear is left"):
        _train(tmp_path, pattern="2:4", dense=("*",))


def test_a_layer_that_the_pattern_does_not_divide_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.self_attn\.o_proj: .*`dense`"):
        _train(tmp_path, pattern="3:7")


def test_training_from_random_numbers_leaves_the_weights_that_are_there(tmp_path: Path) -> None:
    before, after = _train(tmp_path, start="random", lr=1e-9)
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.allclose(before[name], after[name], atol=1e-3)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tmp_path / "start")
    fresh = AutoModelForCausalLM.from_config(config).state_dict()
    torch.testing.assert_close(fresh[name], after[name], rtol=0, atol=1e-6)


def test_only_nm_patterns_are_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SLoPe trains N:M weights"):
        _train(tmp_path, pattern="50%")


def _compress(model: str, out: Path, *settings: str) -> dict[str, Any]:
    store = StageStore(out.parent / "store")
    asked = requests.compression(model, "slope", list(settings), "float32", out)
    return compress_to(asked, out, store, QUIET)


def test_the_checkpoint_goes_through_the_source_and_computes_what_training_computed(
    tmp_path: Path, trained: Any
) -> None:
    folder, _, after = trained
    result = _compress(str(folder), tmp_path / "packed")
    packed = checkpoint.Checkpoint.open(tmp_path / "packed")
    kinds = {name: type(weight) for name, weight in packed.weights()}
    assert kinds.pop("model.layers.1.mlp.up_proj") is Adapted
    assert result["dense"] == [f"model.layers.0.self_attn.{part}_proj" for part in ("q", "k", "v")]
    assert all(kinds[name] is Dense for name in result["dense"])
    assert result["unmapped"] == []

    live = AutoModelForCausalLM.from_pretrained(folder.parent / "start")
    for name in [name.removesuffix(".weight") for name in after if _sparse(name)]:
        linear, weight = live.get_submodule(name), after[f"{name}.weight"]
        layer = SlopeLinear(linear, weight != 0, NM(2, 4), exact=True)
        layer.add_adapter(2, torch.Generator())
        live.set_submodule(name, layer)
    live.load_state_dict(after)
    ids = torch.randint(0, 96, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(
            packed.load_model()(ids).logits, live(ids).logits, rtol=1e-4, atol=1e-5
        )


def test_tensors_that_cannot_be_mapped_are_listed(tmp_path: Path, trained: Any) -> None:
    folder, _, after = trained
    state = dict(after) | {
        "cls.predictions.bias": torch.zeros(3),
        "model.layers.1.mlp.up_proj.surprise": torch.zeros(2),
    }
    pretrain.write_checkpoint(tmp_path, 7, state, {})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    result = _compress(str(tmp_path), tmp_path / "packed")
    expected = ["cls.predictions.bias", "model.layers.1.mlp.up_proj.surprise"]
    assert result["unmapped"] == expected
    summary = json.loads((tmp_path / "packed" / "trinity.json").read_text())
    assert summary["imported"]["unmapped"] == expected
    assert summary["imported"]["method"] == "slope"


def test_a_trained_model_is_trained_once(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    spec = TrainingSpec(steps=2, batch=2, seqlen=32, pattern="2:4")
    first = resolve("trained:tiny-llama", None, store, spec)
    again = resolve("trained:tiny-llama", None, store, spec)
    other = resolve("trained:tiny-llama", None, store, spec.model_copy(update={"seed": 1}))
    assert first == again
    assert first.sha256 != other.sha256
    assert first.label == other.label == "tiny-llama-trained"
    assert len(list((tmp_path / "trained").glob("*/*"))) == 2


def test_training_options_of_a_finished_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`training` is for models 'trained:NAME'"):
        resolve("random:tiny-llama", None, StageStore(tmp_path), TrainingSpec())
    with pytest.raises(ConfigError, match=r"trained:tiny-lama.*Did you mean tiny-llama"):
        resolve("trained:tiny-lama", None, StageStore(tmp_path), TrainingSpec())
