"""harness/runs/one_model.py and harness/runs/run.py: what a model that was compressed elsewhere is
compared with.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.harness import families
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.checkpoints.exporting import export
from trinity.harness.hub import data_sets
from trinity.harness.recipes import recipe
from trinity.harness.records.measurement import Measurement
from trinity.harness.runs import requests
from trinity.harness.runs.one_model import evaluate_model
from trinity.harness.runs.outputs import compress_to
from trinity.harness.runs.run import Run
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError

DENSE = "random:tiny-llama"
SIZES = {"limit": None, "windows": 1, "seqlen": 32}
SUITE = "fidelity-pydoc"
STEP = {"method": "magnitude", "pattern": "2:4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, `ours` from a dense model, its GPTQ export `theirs`, and that imported."""
    place = tmp_path_factory.mktemp("elsewhere")
    store, reporter = StageStore(place / "store"), Reporter(quiet=True)
    settings = ["group_size=64", "scale_dtype=float16"]
    asked = requests.compression(DENSE, "rtn", settings, "float32", place / "ours")
    compress_to(asked, place / "ours", store, reporter)
    export(Checkpoint.open(place / "ours"), "gptq", place / "theirs")
    asked = requests.compression(
        str(place / "theirs"), "gptq-checkpoint", [], "float32", place / "imported"
    )
    compress_to(asked, place / "imported", store, reporter)
    return place


def kl(folder: Path, model: str, dense: str | None) -> float:
    asked = requests.evaluation(str(folder / model), [SUITE], SIZES, "torch", "llvm-cpu", dense)
    found = evaluate_model(asked, StageStore(folder / "store"), Reporter(quiet=True))
    (divergence,) = (m.value for m in found if m.metric == "kl")
    assert divergence is not None
    return divergence


def run(folder: Path, compress: dict[str, Any] | None = None, **model: Any) -> Run:
    asked = recipe.parse(
        {
            "name": "imported",
            "model": {"id": str(folder / "theirs"), **model},
            "compress": {"steps": [{"method": "gptq-checkpoint"}], **(compress or {})},
            "evaluate": {"suites": [{"suite": SUITE, "windows": 1, "seqlen": 32}]},
        },
        "test",
    )
    return Run(asked, StageStore(folder / "store"), Reporter(quiet=True))


def test_imported_weights_are_as_far_from_a_named_model_as_the_same_weights_made_here(
    folder: Path,
) -> None:
    assert kl(folder, "imported", DENSE) == pytest.approx(kl(folder, "ours", None))
    (divergence,) = (m for m in run(folder, dense=DENSE).finish().record.measurements[:1])
    assert divergence.value == pytest.approx(kl(folder, "ours", None))
    assert divergence.details["dense_model"].endswith(" in float32")


def test_inputs_that_a_recipe_rounds_are_rounded_beside_imported_weights(folder: Path) -> None:
    made = run(folder, {"inputs": {"kind": "int8"}}, dense=DENSE)
    found = Checkpoint.open(made.compress())
    assert set(found.inputs) == set(found.formats)
    assert made.compress() != run(folder, dense=DENSE).compress()


def test_without_a_name_it_is_said_that_the_model_before_is_not_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"read by gptq-checkpoint, so .* Name it with --dense"):
        kl(folder, "imported", None)
    with pytest.raises(ConfigError, match=r"gptq-checkpoint reads .*under `model:`, as `dense:`"):
        run(folder)


def test_a_named_model_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    families.save("llama", tmp_path / "other")
    named = r"lm_head\.weight is \[258, 128\], and in the model that is named as dense .*\[96, 32\]"
    with pytest.raises(ConfigError, match=named):
        kl(folder, "imported", str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=named):
        run(folder, dense=str(tmp_path / "other"))


def test_a_name_may_say_where_the_model_is_now_but_not_that_it_is_another(
    folder: Path, tmp_path: Path
) -> None:
    assert kl(folder, "ours", DENSE) == pytest.approx(kl(folder, "ours", None))
    families.save("llama", tmp_path / "other")
    with pytest.raises(ConfigError, match="they cannot be compared"):
        kl(folder, "ours", str(tmp_path / "other"))


def test_a_checkpoint_does_not_depend_on_what_it_is_compared_with(folder: Path) -> None:
    def checkpoint(**model: Any) -> str:
        data = {"model": {"id": DENSE, **model}, "compress": {"steps": [STEP]}}
        store = StageStore(folder / "store")
        return Run(recipe.parse(data, "test"), store, Reporter(quiet=True)).compress().name

    assert checkpoint() == checkpoint(dense=str(folder / "ours"))


def evaluated(folder: Path, **sizes: int) -> list[Measurement]:
    asked = requests.evaluation(DENSE, ["perplexity-pydoc"], sizes, "torch", "llvm-cpu", None)
    return evaluate_model(asked, StageStore(folder / "store"), Reporter(quiet=True))


def test_a_models_context_bounds_a_suites_own_windows_and_the_record_says_so(folder: Path) -> None:
    (bounded,) = evaluated(folder, windows=1)
    assert (bounded.details["seqlen"], bounded.details["seqlen_bounded_from"]) == (512, 2048)
    (named,) = evaluated(folder, windows=1, seqlen=512)
    assert "seqlen_bounded_from" not in named.details
    assert named.value == bounded.value
    with pytest.raises(ConfigError, match="seqlen is 2048, and this model reads 512 tokens"):
        evaluated(folder, windows=1, seqlen=2048)


def test_compress_takes_the_text_at_hand_where_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRINITY_DATA_DIR", raising=False)
    data_sets.asked_once.cache_clear()
    settings = ["pattern=2:4", "calibration.samples=2"]
    asked = requests.compression(DENSE, "wanda", settings, "float32", folder / "fallback")
    store = StageStore(folder / "store")
    with Reporter(quiet=True) as reporter:
        found = compress_to(asked, folder / "fallback", store, reporter)
    said = "calibrating on 2 windows of pydoc (concatenated)"
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in found["calibration"]
    text = Checkpoint.open(folder / "fallback").summary["calibration"]
    assert (text["dataset"], text["samples"], text["seqlen"]) == ("pydoc", 2, 256)


def test_compress_bounds_the_default_windows_by_the_models_context(folder: Path) -> None:
    settings = ["pattern=2:4", "calibration.samples=2", "calibration.dataset=pydoc"]
    settings.append("calibration.rule=concatenated")
    asked = requests.compression(DENSE, "wanda", settings, "float32", folder / "bounded")
    compress_to(asked, folder / "bounded", StageStore(folder / "store"), Reporter(quiet=True))
    text = Checkpoint.open(folder / "bounded").summary["calibration"]
    assert (text["seqlen"], text["seqlen_bounded_from"]) == (512, 2048)


def test_a_damaged_tokenizer_is_named_where_the_user_has_it(folder: Path, tmp_path: Path) -> None:
    store = StageStore(folder / "store")
    model = shutil.copytree(sources.resolve(DENSE, None, store).path, tmp_path / "model")
    (model / "tokenizer.json").write_bytes(b"{")
    asked = requests.evaluation(str(model), ["perplexity-pydoc"], SIZES, "torch", "llvm-cpu")
    with pytest.raises(ConfigError, match=f"{model}/tokenizer.json: is damaged"):
        evaluate_model(asked, store, Reporter(quiet=True))
