import pytest

from trinity.harness.compress import plan
from trinity.harness.recipes.recipe import CompressSpec
from trinity.methods import registry
from trinity.methods.contract import MethodConfig, Statistic
from trinity.methods.errors import ConfigError

SHAPES = {f"model.layers.{i}.{n}": (32, 48) for i in range(3) for n in ("q", "down")}


def _plan(**spec: object) -> plan.Plan:
    return plan.make(CompressSpec.model_validate(spec), SHAPES)


def test_every_layer_gets_the_steps_but_the_skipped_ones() -> None:
    made = _plan(steps=[{"method": "magnitude", "pattern": "2:4"}], skip=["*.down"])
    counts = {name: len(steps) for name, steps in made.steps.items()}
    assert counts == {name: int(name.endswith("q")) for name in SHAPES}


def test_overrides_take_the_place_of_the_steps() -> None:
    made = _plan(
        steps=[{"method": "magnitude", "pattern": "2:4"}],
        layers={"model.layers.1.*": [{"method": "rtn", "group_size": "channel"}]},
    )
    assert [s.name for s in made.steps["model.layers.1.q"]] == ["rtn"]
    assert [s.name for s in made.steps["model.layers.0.q"]] == ["magnitude"]


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers\.9"):
        _plan(layers={"model.layers.9.*": [{"method": "dense"}]})


def test_a_group_that_does_not_divide_names_the_layers() -> None:
    with pytest.raises(ConfigError) as caught:
        _plan(steps=[{"method": "rtn", "group_size": 32}])
    message = str(caught.value)
    assert "group_size 32 does not divide in = 48" in message
    assert "model.layers.0.q" in message
    assert "and 3 more layers" in message


def test_a_pattern_that_does_not_divide_names_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"2:5 does not divide in = 48"):
        _plan(steps=[{"method": "magnitude", "pattern": "2:5"}])


def test_an_unknown_method_comes_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean wanda"):
        _plan(steps=[{"method": "wnda"}])


def test_needs_are_those_of_all_steps() -> None:
    assert not _plan(steps=[{"method": "magnitude", "pattern": "2:4"}]).needs
    both = _plan(steps=[{"method": "slim-quant"}, {"method": "wanda", "pattern": "2:4"}])
    assert both.needs & Statistic.X_NORM


def test_options_may_need_more_than_their_method() -> None:
    wanda = {"method": "wanda", "pattern": "2:4"}
    plain, held_out = (
        _plan(steps=[wanda, {"method": "optima", "decides": decides}]).needs
        for decides in ("calibration", "held-out")
    )
    assert held_out & Statistic.HELD_OUT
    assert not plain & Statistic.HELD_OUT


def test_a_description_holds_the_defaults_too() -> None:
    described = _plan(steps=[{"method": "rtn", "group_size": 16}]).describe(["model.layers.0.q"])
    assert described["model.layers.0.q"] == [
        {
            "method": "rtn",
            "bits": 4,
            "group_size": 16,
            "symmetric": True,
            "scale_dtype": "float16",
            "ragged": "refuse",
        }
    ]


def test_input_by_input_and_whole_block_methods_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole:
        name = "whole"
        paper = "test"
        config = MethodConfig
        needs = Statistic.NOTHING

        def problem(self, shape: object, config: object) -> str | None:
            return None

        def compress_block(self, task: object, config: object) -> dict[str, object]:
            raise AssertionError

    monkeypatch.setattr(registry, "get", lambda name: Whole())
    assert _plan(steps=[{"method": "whole"}]).order == "block"
    with pytest.raises(ConfigError, match="true-sequential: method whole compresses all linears"):
        _plan(steps=[{"method": "whole"}], order="true-sequential")


def test_rounded_inputs_are_declared_for_every_layer_that_is_not_skipped() -> None:
    made = _plan(inputs={"kind": "int8", "group_size": 16}, skip=["*.down"])
    assert set(made.inputs) == {name for name in SHAPES if name.endswith("q")}
    assert {found.label for found in made.inputs.values()} == {"int8 group 16"}
    assert _plan().inputs == {}


def test_groups_of_inputs_that_do_not_divide_name_the_layers() -> None:
    with pytest.raises(
        ConfigError, match=r"inputs\.group_size 32 does not divide in = 48, in model"
    ):
        _plan(inputs={"kind": "int8", "group_size": 32})


def test_inputs_are_rounded_beside_weights_that_a_source_reads() -> None:
    made = _plan(steps=[{"method": "slope"}], inputs={"kind": "int8"}, skip=["*.down"])
    assert made.source is not None
    assert set(made.inputs) == {name for name in SHAPES if name.endswith("q")}


def test_blocks_are_tuned_offline_unless_asked_otherwise() -> None:
    for mode, expected in ((None, "offline"), ("offline", "offline"), ("online", "online")):
        made = _plan(tune={"method": "beam", "mode": mode}).tune
        assert made is not None
        assert made.mode == expected
        assert made.describe()["mode"] == expected


def test_a_mode_is_refused_where_no_single_block_is_tuned() -> None:
    with pytest.raises(ConfigError, match=r"slim-tune tunes the whole model at once.*Leave `mode`"):
        _plan(tune={"method": "slim-tune", "mode": "online"})


def test_a_method_of_blocks_that_wants_statistics_cannot_tune() -> None:
    """They are gone when the last block is compressed."""
    for method in ("optima", "wanda"):
        with pytest.raises(ConfigError, match=f"'{method}' does not tune a compressed model"):
            _plan(tune={"method": method})


def test_weights_that_a_source_reads_are_not_tuned() -> None:
    tuned = {"method": "slim-tune", "data": {"dataset": "pydoc"}}
    with pytest.raises(ConfigError, match=r"compress\.tune: slope reads weights"):
        _plan(steps=[{"method": "slope"}], tune=tuned)


@pytest.mark.parametrize("tune", ["slim-tune", "patch"])
def test_a_whole_model_is_not_tuned_after_its_norms_were_changed(tune: str) -> None:
    steps = ({"method": "smoothquant"}, {"method": "rtn"})
    spec = CompressSpec.model_validate({"steps": steps, "tune": {"method": tune}})
    with pytest.raises(ConfigError, match=f"{tune} runs the whole model .* smoothquant changes"):
        plan.make(spec, {"model.layers.0.mlp.down_proj": (128, 256)})
