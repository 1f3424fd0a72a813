"""harness/training/sharding.py: two processes that have half of a model each train it as one does,
and leave what one leaves.
"""

import contextlib
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.harness import families
from tests.harness.training.trainings import (
    SPARSE,
    STEPS,
    Interrupted,
    checkpoint,
    losses,
    train,
    two_processes,
    untrained,
)
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training import loop, pretrain
from trinity.harness.training.sharding import local
from trinity.harness.training.workers import Workers
from trinity.methods.errors import ConfigError

OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sparse": SPARSE,
    "accumulate": {**SPARSE, "accumulate": 2},
    "checkpointing": {**SPARSE, "checkpointing": "blocks"},
}


def _divided(folder: Path, name: str = "two", **options: Any) -> Path:
    """Train in two processes that have half of the model each.  -> its folder"""
    options["sharding"] = "blocks"
    untrained(folder)
    two_processes(lambda workers: train(folder, name, workers=workers, **options))
    return folder / name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_divided_model_is_trained_as_a_whole_one(tmp_path: Path, options: dict[str, Any]) -> None:
    one, two = train(tmp_path, "one", **options), _divided(tmp_path, **options)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_what_is_left_is_laid_out_as_by_one_process(tmp_path: Path) -> None:
    folders = train(tmp_path, "one", **SPARSE), _divided(tmp_path, **SPARSE)
    whole, found = (torch.load(out / f"ckpt_{STEPS}.pt", weights_only=True) for out in folders)
    assert list(found["model"]) == list(whole["model"])
    # Adam divides small gradients by small roots: rounding shows in a few entries.
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)
    size_bytes = [len(checkpoint(out)) for out in folders]
    assert size_bytes[0] == size_bytes[1]


def test_products_in_bfloat16_are_those_of_one_process(tmp_path: Path) -> None:
    options = {**SPARSE, "precision": "bfloat16"}
    one, two = train(tmp_path, "one", **options), _divided(tmp_path, **options)
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)


def _until(folder: Path, after: int, workers: Workers) -> None:
    options = {**SPARSE, "sharding": "blocks", "workers": workers}
    with contextlib.suppress(KeyboardInterrupt):
        train(folder, "two", reporter=Interrupted(after), **options)
    workers.wait()  # or one hangs up while the other listens


@pytest.mark.parametrize("after", [2, 6], ids=["before-adapters", "with-adapters"])
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, after: int) -> None:
    whole = _divided(tmp_path, "whole", **SPARSE)
    two_processes(lambda workers: _until(tmp_path, after, workers))
    assert not (tmp_path / "two").exists()
    assert checkpoint(_divided(tmp_path, **SPARSE)) == checkpoint(whole)


def _every_family(folder: Path, workers: Workers) -> None:
    for family in families.CONFIGS:
        for sharding in ("none", "blocks"):
            options = {"steps": 3, "sharding": sharding, "workers": workers}
            train(folder, f"{family}-{sharding}", family, **options)


def test_every_family_is_divided(tmp_path: Path) -> None:
    for family in families.CONFIGS:
        untrained(tmp_path, family)
    # Beside two processes with whole models, which draw the same dropout.
    two_processes(lambda workers: _every_family(tmp_path, workers))
    for family in families.CONFIGS:
        whole, found = (losses(tmp_path / f"{family}-{name}") for name in ("none", "blocks"))
        assert found == pytest.approx(whole, rel=1e-5), family


def _alive_bytes() -> int:
    """Of all tensors there are, each memory once."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    storages = [x.untyped_storage() for x in tensors if x.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _hold(folder: Path, spec: TrainingSpec, workers: Workers) -> None:
    """Train, and write down what this process holds afterwards."""
    before, config = _alive_bytes(), families.CONFIGS["llama"]()
    generator = torch.Generator().manual_seed(0)
    job = pretrain.make_job(folder / "llama", config, spec, generator, workers)
    loop.run(job, torch.arange(90), spec, generator, workers, Reporter(quiet=True))
    parameters = list(job.model.parameters())
    found = {
        "whole": sum(p.nbytes for p in parameters),
        "own": sum(local(p).nbytes for p in parameters),
        "alive": _alive_bytes() - before,
    }
    (folder / f"{workers.rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("options", [{}, SPARSE])
def test_each_process_holds_half(tmp_path: Path, options: Any) -> None:
    untrained(tmp_path)
    spec = TrainingSpec(steps=4, batch=2, seqlen=8, sharding="blocks", **options)
    two_processes(lambda workers: _hold(tmp_path, spec, workers))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["own"] == found["whole"] / 2
        # Weights, gradients and two moments; masks beside them are whole.
        assert found["alive"] < 0.6 * 4 * found["whole"]


def test_one_process_has_nobody_to_divide_a_model_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sharding: blocks.*there is one.*torchrun"):
        train(tmp_path, sharding="blocks")
