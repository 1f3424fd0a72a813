"""harness/compress/planning.py: steps that give other steps their options, from all layers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from trinity.harness.checkpoints.block import LAYERS
from trinity.harness.compress import plan
from trinity.harness.compress.planning import Planning
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError, PluginError
from trinity.methods.owl import densities
from trinity.methods.planning import Measured

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))
OWL = {"method": "owl", "times": 3.0}
WANDA = {"method": "wanda", "pattern": "60%"}
RTN = {"method": "rtn", "group_size": 16}


def _planned(folder: Path, store: Path, steps: list[dict[str, Any]], **more: Any) -> plan.Plan:
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    made = plan.make(CompressSpec.model_validate({"steps": steps, **more}), decoder.layer_shapes())
    return Planning(decoder, IDS, StageStore(store), {}).run(made, lambda what, done, of: None)


def _patterns(made: plan.Plan) -> dict[str, str]:
    given = {name: [step.describe() for step in steps] for name, steps in made.steps.items()}
    return {name: str(steps[1]["pattern"]) for name, steps in given.items() if steps}


def _inputs_of(model: Any, name: str) -> Tensor:
    """-> float64 [sequences, seq, in]"""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        for sequence in IDS:
            model(input_ids=sequence[None], use_cache=False)
    handle.remove()
    return torch.cat(seen).double()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_block_gets_the_sparsity_of_its_outliers_in_the_model_before_compression(
    tmp_path: Path, family: str
) -> None:
    """Oracle: the scores of whole-model forwards, counted block by block."""
    model = families.save(family, tmp_path / "model")
    made = _planned(tmp_path / "model", tmp_path / "store", [OWL, WANDA])
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    ratios = []
    for index in range(2):
        scores = []
        for name in decoder.layer_names(index):
            norms = _inputs_of(model, name).square().sum(1).mean(0).sqrt()
            scores.append((weight_of(model.get_submodule(name)).double().abs() * norms).flatten())
        every = torch.cat(scores)
        ratios.append(float((every > 3 * every.mean()).double().mean()))
    assert ratios[0] != ratios[1]
    kept = densities(ratios, 0.6, 0.08)
    for name, pattern in _patterns(made).items():
        index = int(name.removeprefix(f"{decoder.family.blocks}.").partition(".")[0])
        assert float(pattern.rstrip("%")) / 100 == pytest.approx(1 - kept[index], abs=1e-3)


def test_the_walk_prunes_as_planned_and_says_why(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    made = _planned(tmp_path / "model", tmp_path / "store", [OWL, WANDA, RTN])
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    store = StageStore(tmp_path / "store")
    blocks = Walk(decoder, made, IDS, store, {}).run(lambda done, of: None)
    found = []
    for folder in blocks:
        for name, said in json.loads((folder / LAYERS).read_text("utf-8")).items():
            pattern = _patterns(made)[name]
            assert said["sparsity"] == pytest.approx(float(pattern.rstrip("%")) / 100, abs=0.04)
            assert said["diagnostics"][0]["method"] == "owl"
            assert said["diagnostics"][0]["pattern"] == pattern
            assert 0 < said["diagnostics"][0]["outlier_ratio"] < 1
            found.append(pattern)
    assert len(set(found)) == 2  # blocks


def test_recipes_that_plan_alike_share_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    first = _planned(tmp_path / "model", tmp_path / "store", [OWL, WANDA])

    def forbidden(*_: object) -> None:
        raise AssertionError("the model was measured again")

    monkeypatch.setattr(Planning, "_measured", forbidden)
    again = _planned(tmp_path / "model", tmp_path / "store", [OWL, WANDA, RTN])
    assert _patterns(again) == _patterns(first)
    with pytest.raises(AssertionError, match="measured again"):
        _planned(tmp_path / "model", tmp_path / "store", [{**OWL, "times": 2.0}, WANDA])


def test_layers_without_the_step_are_neither_measured_nor_planned(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    made = _planned(tmp_path / "model", tmp_path / "store", [OWL, WANDA], layers={"*.mlp.*": []})
    assert _patterns(made).keys() == {name for name in made.steps if "self_attn" in name}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([OWL], "put it before the step that it plans"),
        ([WANDA, OWL], "put it before the step that it plans"),
        ([OWL, RTN], "owl: the step after it has no option `pattern`"),
        ([OWL, {**WANDA, "pattern": "2:4"}], "owl: the step after it has the pattern 2:4"),
    ],
)
def test_a_planning_step_without_a_step_that_it_can_plan_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], expected: str
) -> None:
    families.save("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match=expected):
        _planned(tmp_path / "model", tmp_path / "store", steps)


class _Planner:
    name, paper, config, needs = "planner", "none", MethodConfig, Statistic.NOTHING

    def __init__(self, numbers: Any, options: Any) -> None:
        self.numbers, self.options = numbers, options

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def measure(
        self, weights: Mapping[str, Tensor], stats: Mapping[str, LayerStats], config: MethodConfig
    ) -> Mapping[str, Mapping[str, float]]:
        return dict.fromkeys(weights, self.numbers)

    def allot(
        self,
        blocks: Sequence[Mapping[str, Measured]],
        given: Mapping[str, Any],
        config: MethodConfig,
    ) -> Mapping[str, Mapping[str, Any]]:
        return {name: self.options for block in blocks for name in block}


@pytest.mark.parametrize(
    ("numbers", "options", "kind", "expected"),
    [
        ({"size": float("nan")}, {}, PluginError, "method 'planner' .* told 'size': nan"),
        ({"size": 1.0}, "none", PluginError, "method 'planner' .* gave a str instead of options"),
        ({"size": 1.0}, {"patern": "30%"}, ConfigError, "has no option patern"),
    ],
)
def test_what_a_planning_method_breaks_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: Any,
    options: Any,
    kind: type[Exception],
    expected: str,
) -> None:
    families.save("llama", tmp_path / "model")
    planner, original = _Planner(numbers, options), registry.get
    monkeypatch.setattr(registry, "get", lambda n: planner if n == "planner" else original(n))
    with pytest.raises(kind, match=expected):
        _planned(tmp_path / "model", tmp_path / "store", [{"method": "planner"}, WANDA])
