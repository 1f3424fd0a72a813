"""The walker holds every method to its contract, and names the layer and the plugin."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from trinity.harness.checkpoints.block import LAYERS, load_block
from trinity.harness.compress import contracts, plan, tune
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore, read_json
from trinity.methods import plugins, registry
from trinity.methods.contract import BlockTask, MethodConfig, ModelTask, Reported, Statistic
from trinity.methods.errors import ConfigError, PluginError, TrinityError
from trinity.methods.formats import Adapted, CompressedWeight, Dense

IDS = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(1))
FIRST = "model.layers.0.self_attn.q_proj"
OWNER = "method 'mine' of mine-dist 0.1"


class _Method:
    """A method that does what a function says, and is registered by `mine-dist 0.1`."""

    name, paper, config = "mine", "none", MethodConfig
    needs = Statistic.HESSIAN

    def __init__(self, does: Callable[..., Any]) -> None:
        self.does = does

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None


class _Alone(_Method):
    def compress(self, *given: Any) -> Any:
        return self.does(*given[:3])


class _Block(_Method):
    def compress_block(self, task: BlockTask, config: MethodConfig) -> Any:
        return self.does(task)


class _Model:
    name, paper, config = "mine", "none", MethodConfig

    def __init__(self, does: Callable[..., Any]) -> None:
        self.does = does

    def compress_model(self, task: ModelTask, config: MethodConfig) -> Any:
        return self.does(task)


class _Distribution:
    name, version = "mine-dist", "0.1"


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Makes a method the plugin `mine` of `mine-dist 0.1`."""
    entry = EntryPoint("mine", f"{__name__}:MINE", registry.GROUP)
    vars(entry)["dist"] = _Distribution()
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    original = registry.get

    def put(method: Any) -> Any:
        monkeypatch.setattr(registry, "get", lambda n: method if n == "mine" else original(n))
        return method

    return put


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    families.save("llama", folder)
    return folder


def _walk(model: Path, store: Path, *names: str, ids: Tensor | None = IDS) -> list[Path]:
    decoder = Decoder(model, torch.float32, torch.device("cpu"))
    spec = CompressSpec.model_validate({"steps": [{"method": name} for name in names]})
    made = plan.make(spec, decoder.layer_shapes())
    return Walk(decoder, made, ids, StageStore(store), {}).run(lambda *_: None)


class _Foreign(Dense):
    def dequantize(self) -> Tensor:
        return 2 * super().dequantize()


def _huge(weight: Tensor) -> CompressedWeight:
    factors = torch.full((weight.shape[0], 1), 1e30), torch.full((1, weight.shape[1]), 1e30)
    return Adapted(Dense(weight), *factors)


class _OddError(ConfigError):
    def __init__(self, text: str, more: int) -> None:
        super().__init__(text)


def _raises(error: BaseException) -> Callable[..., Any]:
    def does(*_: Any) -> Any:
        raise error

    return does


ALONE: dict[str, tuple[Callable[..., Any], str]] = {
    "a number": (
        lambda w, c, s: 3,
        "gave a int where one of Dense, Quantized, Coded, RowCoded, Nested, VectorCoded, "
        "SignSum, Sparse, WithOutliers, Adapted",
    ),
    "nothing": (lambda w, c, s: None, "gave a NoneType where"),
    "a tensor": (lambda w, c, s: w, "gave a Tensor where"),
    "a format of its own": (lambda w, c, s: _Foreign(w), "gave a _Foreign where"),
    "another shape": (lambda w, c, s: Dense(w[:-1].clone()), r"gave [31, 32] for a layer of [32"),
    "an overflow": (lambda w, c, s: _huge(w), "gave a weight that decodes to NaN or infinity"),
    "a changed weight": (lambda w, c, s: Dense(w.mul_(2)), "changed W, which it was given to read"),
    "a changed Hessian": (lambda w, c, s: (s.H.add_(1), c)[1], "changed stats.H, which"),
    "a changed result": (lambda w, c, s: (c.values.add_(1), c)[1], "changed W, which"),
    "details of tensors": (lambda w, c, s: Reported(c, {"x": w}), "told 'x': tensor("),
    "details of NaN": (lambda w, c, s: Reported(c, {"x": float("nan")}), "told 'x': nan;"),
    "an error": (_raises(ValueError("too bad")), "raised ValueError: too bad (its traceback: --de"),
    "a bare error": (_raises(KeyError()), "raised KeyError() (its"),
    "an exit": (_raises(SystemExit(0)), "raised SystemExit: 0 (its"),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_a_method_breaks_names_the_layer_and_the_plugin(
    case: str, register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    does, said = ALONE[case]
    register(_Alone(does))
    with pytest.raises(PluginError, match=re.escape(f"{FIRST}: {OWNER} {said}")) as error:
        _walk(model, tmp_path, "mine")
    assert error.value.exit_code == 4


def _left_out(task: BlockTask) -> Any:
    return {name: weight for name, weight in task.current.items() if "mlp" not in name}


def _changed_input(task: BlockTask) -> Any:
    task.inputs[1].zero_()
    return task.current


BLOCK: dict[str, tuple[Callable[[BlockTask], Any], str]] = {
    "layers left out": (
        _left_out,
        "left out model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj, "
        "model.layers.0.mlp.up_proj;",
    ),
    "layers added": (lambda t: {**t.current, "head": t.current[FIRST]}, "gave head, which it was"),
    "a list": (lambda t: list(t.current.values()), "gave a list instead of a mapping"),
    "a changed input": (_changed_input, "changed inputs[1], which it was given to read"),
    "an error": (_raises(ZeroDivisionError("by zero")), "raised ZeroDivisionError: by zero"),
}


@pytest.mark.parametrize("case", BLOCK)
def test_what_a_block_method_breaks_names_the_block_and_the_plugin(
    case: str, register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    does, said = BLOCK[case]
    register(_Block(does))
    with pytest.raises(PluginError, match=re.escape(f"model.layers.0: {OWNER} {said}")):
        _walk(model, tmp_path, "mine")


def test_a_wrong_weight_in_a_block_names_its_layer(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    register(_Block(lambda task: {**task.current, FIRST: Dense(torch.ones(2, 2))}))
    with pytest.raises(PluginError, match=rf"{FIRST}: {OWNER} gave \[2, 2\] for a layer of"):
        _walk(model, tmp_path, "mine")


def test_a_block_method_may_tell_details_of_some_layers(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    def does(task: BlockTask) -> Any:
        told = {n: Reported(w, {"steps": 3}) for n, w in task.current.items() if n == FIRST}
        return {**task.current, **told}

    register(_Block(does))
    first, _ = _walk(model, tmp_path, "mine")
    report = read_json(first / LAYERS)
    assert report[FIRST]["diagnostics"] == [{"method": "mine", "steps": 3}]
    assert report["model.layers.0.mlp.up_proj"]["diagnostics"] == []


def test_a_block_that_is_run_without_calibration_data_is_refused_in_words(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    def does(task: BlockTask) -> Any:
        task.forward(task.weights, torch.zeros(4, 32))

    register(_Block(does)).needs = Statistic.NOTHING
    with pytest.raises(ConfigError, match=r"model\.layers\.0: mine: .* no calibration data"):
        _walk(model, tmp_path, "mine", ids=None)


def test_an_error_on_purpose_keeps_its_kind_and_gets_the_layers_name(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    register(_Alone(_raises(ConfigError("mine: cannot."))))
    with pytest.raises(ConfigError, match=rf"^{FIRST}: mine: cannot\.$"):
        _walk(model, tmp_path, "mine")
    register(_Alone(_raises(_OddError("cannot.", 3))))
    with pytest.raises(ConfigError, match=rf"^{FIRST}: mine: cannot\.$") as error:
        _walk(model, tmp_path, "mine")
    assert type(error.value) is ConfigError


def test_lack_of_memory_stays_what_it_is(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    register(_Alone(_raises(torch.OutOfMemoryError("none left"))))
    with pytest.raises(torch.OutOfMemoryError):
        _walk(model, tmp_path, "mine")


def test_our_own_mistakes_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    dense = registry.get("dense")
    monkeypatch.setattr(type(dense), "compress", _raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError) as error:
        _walk(model, tmp_path, "dense")
    assert FIRST in error.value.__notes__[0]


@pytest.mark.parametrize("gives", [3, b"no", ["no"]])
def test_a_problem_that_is_no_text_names_the_layer_before_any_work(
    gives: object, register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    register(_Alone(lambda *_: None)).problem = lambda shape, config: gives
    with pytest.raises(PluginError, match=rf"{FIRST}: {OWNER} `problem` gave .* where a text or"):
        _walk(model, tmp_path, "mine")


def test_a_problem_that_fails_names_the_layer(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    register(_Alone(lambda *_: None)).problem = _raises(TypeError("oh"))
    with pytest.raises(PluginError, match=rf"{FIRST}: {OWNER} raised TypeError: oh"):
        _walk(model, tmp_path, "mine")


def _without_one(task: ModelTask) -> Any:
    return dict(list(task.current.items())[1:])


def _half(task: ModelTask) -> Any:
    return {name: Dense(w.dequantize().half()) for name, w in task.current.items()}


def _shifted(task: ModelTask) -> Any:
    task.sequences.add_(1)
    return task.current


MODEL: dict[str, tuple[Callable[[ModelTask], Any], str]] = {
    "a layer left out": (_without_one, f"compress.tune: {OWNER} left out {FIRST};"),
    "other formats": (_half, f"{FIRST}: {OWNER} got a weight stored as float32 and gave one"),
    "changed tokens": (_shifted, f"compress.tune: {OWNER} changed sequences, which"),
    "an error": (_raises(IndexError("far")), f"compress.tune: {OWNER} raised IndexError: far"),
}


def _tune(model: Path, folder: Path, does: Callable[[ModelTask], Any]) -> list[Path]:
    blocks = _walk(model, folder / "store", "mine")
    decoder = Decoder(model, torch.float32, torch.device("cpu"))
    step = plan.PlannedTune("mine", _Model(does), MethodConfig())
    (folder / "out").mkdir()
    tune.tune(decoder, step, IDS, blocks, folder / "out")
    return tune.tuned_folders(folder / "out", len(blocks))


@pytest.mark.parametrize("case", MODEL)
def test_what_a_model_method_breaks_names_it(
    case: str, register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    does, said = MODEL[case]
    register(_Alone(lambda w, current, stats: current))
    with pytest.raises(TrinityError, match=re.escape(said)):
        _tune(model, tmp_path, does)


def test_tuning_keeps_what_the_steps_before_told(
    register: Callable[[Any], Any], model: Path, tmp_path: Path
) -> None:
    register(_Alone(lambda w, c, s: Reported(c, {"error": 0.5})))

    def does(task: ModelTask) -> Mapping[str, Any]:
        return {**task.current, FIRST: Reported(task.current[FIRST], {"loss": 1.0})}

    first, second = _tune(model, tmp_path, does)
    told = [{"method": "mine", "error": 0.5}]
    report = read_json(first / LAYERS)
    assert report[FIRST]["diagnostics"] == [*told, {"method": "mine", "loss": 1.0}]
    assert all(layer["diagnostics"] == told for layer in read_json(second / LAYERS).values())
    assert load_block(first).keys() == report.keys()


def test_a_source_that_gives_something_else_is_named(register: Callable[[Any], Any]) -> None:
    register(None)
    with pytest.raises(PluginError, match=f"folder: {OWNER} gave a list instead of a mapping"):
        contracts.loaded("mine", "folder", [])
    with pytest.raises(PluginError, match=f"fc: {OWNER} gave a Reported where"):
        contracts.loaded("mine", "folder", {"fc": Reported(Dense(torch.ones(2, 2)), {})})
