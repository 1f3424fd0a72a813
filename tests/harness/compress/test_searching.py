"""harness/compress/searching.py: options by layer, from whole models that are tried."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness import families
from trinity.harness.checkpoints.block import LAYERS
from trinity.harness.compress import plan
from trinity.harness.compress.planning import Planning
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import MethodConfig, Statistic
from trinity.methods.errors import ConfigError, PluginError
from trinity.methods.evopress import EVOPRESS
from trinity.methods.searching import Choice, Levels, Searched, SearchTask

IDS = torch.randint(0, 96, (4, 16), generator=torch.Generator().manual_seed(1))
EVOPRESS_STEP = {
    "method": "evopress",
    **{"levels": 2, "generations": 4, "offspring": 6, "survivors": [2, 1], "tokens": [16, 64]},
}
WANDA = {"method": "wanda", "pattern": "50%"}
RTN = {"method": "rtn", "group_size": 16}


def planned(
    folder: Path, store: StageStore, steps: list[dict[str, Any]], ids: Any = IDS, **more: Any
) -> plan.Plan:
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    made = plan.make(CompressSpec.model_validate({"steps": steps, **more}), decoder.layer_shapes())
    return Planning(decoder, ids, store, {}).run(made, lambda what, done, of: None)


def options(made: plan.Plan, option: str) -> dict[str, Any]:
    given = {name: [step.describe() for step in steps] for name, steps in made.steps.items()}
    return {name: steps[1][option] for name, steps in given.items() if steps}


def told(made: plan.Plan) -> dict[str, Mapping[str, Any]]:
    return {name: said[0] for name, said in made.told.items()}


def test_it_keeps_the_budget_and_comes_nearer_to_the_dense_model(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    made = planned(tmp_path / "model", StageStore(tmp_path / "store"), [EVOPRESS_STEP, WANDA])
    shapes = Decoder(tmp_path / "model", torch.float32, torch.device("cpu")).layer_shapes()
    removed = total = 0.0
    for name, pattern in options(made, "pattern").items():
        size = shapes[name][0] * shapes[name][1]
        removed += float(pattern.rstrip("%")) / 100 * size
        total += size
    assert removed == pytest.approx(total / 2, rel=1e-6)
    assert len(set(options(made, "pattern").values())) > 1
    for said in told(made).values():
        # The last selection reads all sequences, so no generation was worse than the one before.
        assert said["divergence"] < said["divergence_as_given"]
    assert sum(said["level"] for said in told(made).values()) == 0


def test_the_walk_compresses_as_was_found_and_says_why(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    store = StageStore(tmp_path / "store")
    made = planned(tmp_path / "model", store, [EVOPRESS_STEP, WANDA, RTN])
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    blocks = Walk(decoder, made, IDS, store, {}).run(lambda done, of: None)
    for folder in blocks:
        for name, said in json.loads((folder / LAYERS).read_text("utf-8")).items():
            pattern = options(made, "pattern")[name]
            assert said["sparsity"] == pytest.approx(float(pattern.rstrip("%")) / 100, abs=0.04)
            assert said["diagnostics"][0] == dict(told(made)[name])
            assert said["diagnostics"][0]["pattern"] == pattern


def test_bits_are_found_too(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    steps = [{**EVOPRESS_STEP, "vary": "bits"}, {**RTN, "bits": 3}]
    made = planned(tmp_path / "model", StageStore(tmp_path / "store"), steps)
    shapes = Decoder(tmp_path / "model", torch.float32, torch.device("cpu")).layer_shapes()
    by_size: dict[int, list[int]] = {}
    for name, bits in options(made, "bits").items():
        by_size.setdefault(shapes[name][0] * shapes[name][1], []).append(bits)
    assert all(sum(bits) == 3 * len(bits) for bits in by_size.values())
    assert {bits for of in by_size.values() for bits in of} == {2, 3, 4}


def test_a_killed_search_goes_on_where_it_was_and_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    steps = [EVOPRESS_STEP, WANDA]
    whole = planned(tmp_path / "model", StageStore(tmp_path / "whole"), steps)
    rounds: list[int] = []
    improve = type(EVOPRESS).improve

    def watched(self: Any, best: Choice, at: int, task: SearchTask, config: Any) -> Choice:
        rounds.append(at)
        if rounds == [0, 1, 2]:
            raise KeyboardInterrupt
        return improve(self, best, at, task, config)

    monkeypatch.setattr(type(EVOPRESS), "improve", watched)
    with pytest.raises(KeyboardInterrupt):
        planned(tmp_path / "model", StageStore(tmp_path / "store"), steps)
    made = planned(tmp_path / "model", StageStore(tmp_path / "store"), steps)
    assert rounds == [0, 1, 2, 2, 3]
    assert told(made) == told(whole)
    store = StageStore(tmp_path / "store")
    assert told(planned(tmp_path / "model", store, steps)) == told(whole)
    assert store.made == 0


def test_searches_of_other_seeds_share_the_layers(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    planned(tmp_path / "model", StageStore(tmp_path / "store"), [EVOPRESS_STEP, WANDA])
    store = StageStore(tmp_path / "store")
    planned(tmp_path / "model", store, [{**EVOPRESS_STEP, "seed": 1}, WANDA])
    assert store.made == 5  # four rounds and the measurement


def test_without_a_text_there_is_nothing_to_try_on(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    store = StageStore(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"evopress: models are tried on a text"):
        planned(
            tmp_path / "model",
            store,
            [EVOPRESS_STEP, {"method": "magnitude", "pattern": "50%"}],
            None,
        )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([EVOPRESS_STEP], "put it before the step that it plans"),
        ([EVOPRESS_STEP, RTN], "evopress: .* has no such option there"),
        ([{"method": "smoothquant"}, EVOPRESS_STEP, WANDA], "smoothquant: it changes several"),
    ],
)
def test_a_step_that_cannot_be_searched_for_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], expected: str
) -> None:
    families.save("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match=expected):
        planned(tmp_path / "model", StageStore(tmp_path / "store"), steps)


class _Searcher:
    name, paper, config, needs = "searcher", "none", MethodConfig, Statistic.NOTHING

    def __init__(self, levels: Any, choice: Any) -> None:
        self.tried, self.chosen = levels, choice

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def levels(self, model: Searched, config: MethodConfig) -> Levels:
        return dict.fromkeys(model.shapes, self.tried)

    def rounds(self, config: MethodConfig) -> int:
        return 1

    def reads(self, config: MethodConfig) -> int:
        return 1

    def improve(self, best: Choice, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        return dict.fromkeys(best, self.chosen)


@pytest.mark.parametrize(
    ("levels", "choice", "kind", "expected"),
    [
        ({1: {}}, 1, PluginError, "method 'searcher' .* options by level, 0 included"),
        ({0: "none"}, 0, PluginError, "method 'searcher' .* gave 'none' at level 0"),
        ({0: {}}, 2, PluginError, r"method 'searcher' .* chose level 2, which is none of \[0\]"),
        ({0: {"patern": "30%"}}, 0, ConfigError, "has no option patern"),
    ],
)
def test_what_a_searching_method_breaks_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    levels: Any,
    choice: Any,
    kind: type[Exception],
    expected: str,
) -> None:
    families.save("llama", tmp_path / "model")
    searcher, original = _Searcher(levels, choice), registry.get
    monkeypatch.setattr(registry, "get", lambda n: searcher if n == "searcher" else original(n))
    with pytest.raises(kind, match=expected):
        planned(tmp_path / "model", StageStore(tmp_path / "store"), [{"method": "searcher"}, WANDA])
