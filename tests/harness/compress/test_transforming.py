"""Scales that move between layers: harness/compress/transforming.py, harness/models/folding.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from tests.harness.compress import stopped
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.block import LAYERS, SCALES, load_block, load_scales
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models import families as rows
from trinity.harness.models.decoder import Decoder
from trinity.harness.models.families import Family, FoldSpec
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError, PluginError, UnsupportedError
from trinity.methods.formats import Dense
from trinity.methods.transforms import Fold, Scaled, TransformTask

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))
AWQ = {"method": "awq", "group_size": 16, "alphas": 4}


class _Random:
    """Scales between a third and three, other ones in every block and place."""

    name, paper, config, needs = "random", "none", MethodConfig, Statistic.X_NORM

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def transform(self, task: TransformTask, config: MethodConfig) -> Mapping[Fold, Scaled]:
        found = {}
        for fold in task.folds:
            size = task.weights[fold.linears[0]].shape[1]
            generator = torch.Generator().manual_seed(len(fold.into) + size)
            found[fold] = Scaled(3 ** (2 * torch.rand(size, generator=generator) - 1))
        return found


class _Wrong(_Random):
    def transform(self, task: TransformTask, config: MethodConfig) -> Mapping[Fold, Scaled]:
        return {
            fold: Scaled(-found.scale) for fold, found in super().transform(task, config).items()
        }


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods `random` and `wrong` beside the others."""
    original, made = registry.get, {"random": _Random(), "wrong": _Wrong()}
    monkeypatch.setattr(registry, "get", lambda n: made[n] if n in made else original(n))


def _walked(
    folder: Path, store: Path, steps: list[dict[str, Any]], **more: Any
) -> tuple[Decoder, list[Path]]:
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    spec = CompressSpec.model_validate({"steps": steps, **more})
    made = plan.make(spec, decoder.layer_shapes())
    ids = IDS
    return decoder, Walk(decoder, made, ids, StageStore(store), {}).run(lambda done, of: None)


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("family", families.CONFIGS)
def test_scales_that_are_moved_in_every_place_of_a_family_change_no_logit(
    tmp_path: Path, family: str
) -> None:
    """The checkpoint of random scales and no compression is the same model, of other tensors."""
    model = families.save(family, tmp_path / "model")
    decoder, blocks = _walked(tmp_path / "model", tmp_path / "store", [{"method": "random"}])
    (tmp_path / "out").mkdir()
    checkpoint.write(tmp_path / "out", decoder, blocks, {})
    found = Checkpoint.open(tmp_path / "out").load_model()
    expected = _logits(model)
    torch.testing.assert_close(_logits(found), expected, rtol=1e-3, atol=1e-4)
    folds = decoder.folds(0)
    moved = [f"{fold.into}.weight" for fold in folds]
    changed = dict(found.named_parameters())
    for name in moved:
        assert not torch.allclose(changed[name], dict(model.named_parameters())[name], rtol=0.05)
    assert bool(moved) == (family not in ("falcon", "phi"))  # phi: here with shared value heads


@pytest.mark.usefixtures("offered")
def test_what_is_no_identity_is_refused_with_the_name_of_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohere has one norm before attention and MLP: a scale of one of them is not the other's."""
    families.save("cohere", tmp_path / "model")
    row = rows.BUILT_IN["cohere"]
    wrong = Family(row.blocks, row.groups, folds=(FoldSpec("self_attn.q_proj", "input_layernorm"),))
    monkeypatch.setitem(rows.BUILT_IN, "cohere", wrong)  # type: ignore[misc]  # a dict beneath
    with pytest.raises(UnsupportedError, match=r"layers\.0\.input_layernorm: random moved a scale"):
        _walked(tmp_path / "model", tmp_path / "store", [{"method": "random"}])


@pytest.mark.usefixtures("offered")
def test_scales_that_are_not_positive_are_the_fault_of_the_method(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    with pytest.raises(PluginError, match=r"input_layernorm: method 'wrong' .* not positive"):
        _walked(tmp_path / "model", tmp_path / "store", [{"method": "wrong"}])


def test_without_calibration_nothing_can_be_proven(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    spec = CompressSpec.model_validate({"steps": [{"method": "smoothquant"}]})
    made = plan.make(spec, decoder.layer_shapes())
    walk = Walk(decoder, made, None, StageStore(tmp_path / "store"), {})
    with pytest.raises(ConfigError, match="smoothquant: the recipe has no calibration data"):
        walk.run(lambda done, of: None)


def test_they_come_before_steps_that_compress(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match="put it before 'rtn' in the steps"):
        _walked(tmp_path / "model", tmp_path / "store", [{"method": "rtn", "group_size": 16}, AWQ])


@pytest.mark.parametrize("order", ["block", "true-sequential"])
def test_what_follows_sees_the_changed_weights_and_inputs(tmp_path: Path, order: str) -> None:
    """With scales, an error of GPTQ is that of the scaled weight: both models, by layer."""
    families.save("llama", tmp_path / "model")
    steps = [AWQ, {"method": "gptq", "bits": 4, "group_size": 16}]
    decoder, blocks = _walked(tmp_path / "model", tmp_path / "store", steps, order=order)
    for index, folder in enumerate(blocks):
        assert (folder / SCALES).is_file()
        report = json.loads((folder / LAYERS).read_text("utf-8"))
        decoder.load(f"model.layers.{index}")
        for name, weight in load_block(folder).items():
            W = decoder.model.get_submodule(name).weight.detach()  # as the decoder reads it now
            assert float((weight.dequantize() - W).norm() / W.norm()) < 0.2
            assert report[name]["relative_error"] < 0.2
        told = report["model.layers.0.mlp.down_proj".replace(".0.", f".{index}.")]["diagnostics"]
        assert told[0]["method"] == "awq"
        assert told[0]["scale_moved_to"].endswith("mlp.up_proj")


def test_a_killed_run_goes_on_with_the_scales_of_finished_blocks(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    steps = [AWQ, {"method": "awq-clip", "bits": 4, "group_size": 16}]

    whole, again = stopped.whole_and_resumed(tmp_path, steps, IDS)
    for one, other in zip(whole, again, strict=True):
        for file in ("block.safetensors", SCALES):
            assert (one / file).read_bytes() == (other / file).read_bytes()


class _Looks:
    """Gives the weight back, and keeps what it saw."""

    name, paper, config = "looks", "none", MethodConfig
    needs = Statistic.X_NORM_CLIPPED | Statistic.X_MEAN_CLIPPED

    def __init__(self) -> None:
        self.seen: list[LayerStats] = []

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def compress(self, *given: Any) -> Dense:
        weight, _, stats, _ = given
        self.seen.append(stats)
        return Dense(weight)


def test_inputs_are_clipped_as_the_model_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the same statistics without a transform, divided by its scales; of the first block,
    which both get the same inputs for.
    """
    families.save("llama", tmp_path / "model")
    seen = []
    for number, steps in enumerate([["looks"], ["random", "random", "looks"]]):
        looks, random, original = _Looks(), _Random(), registry.get
        made = {"looks": looks, "random": random}
        with monkeypatch.context() as patch:
            patch.setattr(registry, "get", lambda n, made=made, get=original: made.get(n) or get(n))
            given = [{"method": name} for name in steps]
            decoder, blocks = _walked(tmp_path / "model", tmp_path / f"store{number}", given)
        seen.append(dict(zip(decoder.layer_names(0), looks.seen, strict=False)))
    scales = load_scales(blocks[0], decoder.folds(0))
    assert len(scales) == 2
    for fold in decoder.folds(0):
        moved = scales[0][fold] * scales[1][fold]
        for name in fold.linears:
            plain, scaled = (found[name] for found in seen)
            for field in ("x_norm_clipped", "X_mean_clipped"):
                expected = getattr(plain, field) / moved
                torch.testing.assert_close(getattr(scaled, field), expected, rtol=1e-4, atol=1e-6)


def test_layers_without_the_step_are_left_alone(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    more = {"layers": {"*.mlp.*": []}}
    _, blocks = _walked(tmp_path / "model", tmp_path / "store", [AWQ], **more)
    report = json.loads((blocks[0] / LAYERS).read_text("utf-8"))
    assert report["model.layers.0.self_attn.q_proj"]["diagnostics"]
    assert not report["model.layers.0.mlp.down_proj"]["diagnostics"]
