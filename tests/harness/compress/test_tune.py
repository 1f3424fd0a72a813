from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness import families
from trinity.harness.checkpoints import checkpoint
from trinity.harness.compress.tune import _Loss
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.recipes import recipe
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, Sparse, Tiles, format_of

TEXT = {"dataset": "pydoc", "samples": 4, "seqlen": 48, "rule": "concatenated"}
STEPS = [{"method": "slim", "pattern": "2:4", "rank": 4}]
TUNE = {"method": "slim-tune", "learning_rate": 3e-3, "batch": 2, "epochs": 6, "warmup": 1}


def _run(store: StageStore, **compress: Any) -> Run:
    data = {
        "name": "test",
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": STEPS, **compress},
        "calibration": TEXT,
    }
    return Run(recipe.parse(data, "test"), store, Reporter(quiet=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_loss_is_that_of_the_model_and_differentiable(tmp_path: Path, family: str) -> None:
    model = families.save(family, tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    ids = torch.randint(0, 96, (16,))
    weights = {}
    for name in decoder.layer_shapes():
        weight = model.get_submodule(name).weight.detach()
        weights[name] = (weight.t() if family == "gpt2" else weight).clone().requires_grad_()
    found = _Loss(decoder, lambda: None)(weights, ids)
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    torch.testing.assert_close(found.detach(), expected)
    found.backward()
    assert all(weight.grad is not None for weight in weights.values())


def test_a_tuned_checkpoint_has_a_lower_loss_and_the_same_formats(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    run, tuned = _run(store), _run(store, tune=TUNE)
    before, after = (checkpoint.Checkpoint.open(r.compress()) for r in (run, tuned))
    assert before.formats == after.formats
    text = run.draw_calibration()
    assert text is not None
    losses = []
    for found in (before, after):
        model = found.load_model()
        with torch.no_grad():
            losses.append(sum(float(model(ids[None], labels=ids[None]).loss) for ids in text[0]))
    assert losses[1] < losses[0]
    assert after.summary["tune"]["method"] == "slim-tune"
    assert after.summary["tune"]["data"]["samples"] == 4
    name = next(iter(before.formats))
    one, other = before.weight(name), after.weight(name)
    assert isinstance(one, Adapted)
    assert isinstance(other, Adapted)
    assert torch.equal(one.base.dequantize(), other.base.dequantize())


def test_what_changes_formats_gets_the_weights_before_compression(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    patch = {"method": "patch", "variant": "tile", "tile": 32, "batch": 2, "sparsity": 0.2}
    two_four = [{"method": "magnitude", "pattern": "2:4"}]
    run = _run(store, steps=two_four)
    tuned = _run(store, steps=two_four, tune=patch)
    before, after = (checkpoint.Checkpoint.open(of.compress()) for of in (run, tuned))
    original = Decoder(run.source.path, torch.float32, torch.device("cpu"))
    kinds = set()
    for index in range(len(original.blocks)):
        original.load(f"{original.family.blocks}.{index}")
        for name in original.layer_names(index):
            W = weight_of(original.model.get_submodule(name))
            one, other = before.weight(name), after.weight(name)
            kinds.add(type(format_of(other).pattern))
            assert isinstance(one, Sparse)
            mask = other.mask if isinstance(other, Sparse) else torch.ones_like(one.mask)
            assert bool((mask | ~one.mask).all())
            assert torch.equal(other.dequantize(), W * mask)
    assert Tiles in kinds


def test_a_second_run_reads_the_tuned_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "cache")
    first = _run(store, tune=TUNE).compress()

    def forbidden(*_: object) -> None:
        raise AssertionError("a second run must not tune again")

    monkeypatch.setattr("trinity.harness.compress.tune.tune", forbidden)
    assert _run(store, tune=TUNE).compress() == first


TWO_FOUR = [{"method": "magnitude", "pattern": "2:4"}]
TUNED = {
    "slim-tune": (STEPS, {**TUNE, "epochs": 3}),
    "patch": (TWO_FOUR, {"method": "patch", "tile": 32, "batch": 3, "epochs": 3}),
}


@pytest.mark.parametrize("method", TUNED)
def test_every_sequence_is_reported_up_to_the_last(tmp_path: Path, method: str) -> None:
    seen = []

    class Listening(Reporter):
        def step(self, name: str, done: int, total: int, left_s: float | None = None) -> None:
            if "sequences" in name:
                seen.append((name, done, total))

    steps, tuned = TUNED[method]
    run = _run(StageStore(tmp_path / "cache"), steps=steps, tune=tuned)
    run.reporter = Listening(quiet=True)
    run.compress()
    assert seen == [(f"test: {method}, sequences", done, 12) for done in range(1, 13)]


def test_tuning_and_compressing_are_not_taken_for_each_other(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"slim-tune.*name it under `compress\.tune`"):
        _run(store, steps=[{"method": "slim-tune"}])
    with pytest.raises(ConfigError, match=r"compress\.tune: method 'wanda' does not tune"):
        _run(store, tune={"method": "wanda", "pattern": "2:4"})


def test_tuning_without_text_is_refused(tmp_path: Path) -> None:
    data = {
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": [{"method": "magnitude", "pattern": "2:4"}], "tune": TUNE},
    }
    with pytest.raises(ConfigError, match=r"compress\.tune: slim-tune needs text"):
        Run(recipe.parse(data, "test"), StageStore(tmp_path / "cache"), Reporter(quiet=True))


def test_tuning_takes_text_of_its_own(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    text = {**TEXT, "samples": 2, "seed": 5}
    found = checkpoint.Checkpoint.open(_run(store, tune={**TUNE, "data": text}).compress())
    assert found.summary["tune"]["data"]["seed"] == 5
    assert found.summary["calibration"]["seed"] == 0
