"""harness/training/loop.py: what a step sums up, and that a killed training ends with the bytes of
one that was not.
"""

import json
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from tests.harness.training.trainings import (
    FORK,
    SPARSE,
    STEPS,
    Interrupted,
    checkpoint,
    losses,
    train,
    two_processes,
)
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.runs import requests
from trinity.harness.runs.train import train_to
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training import loop, pretrain, slope_linear
from trinity.harness.training.snapshots import FILE, Snapshots
from trinity.harness.training.workers import Workers
from trinity.methods.errors import ConfigError
from trinity.methods.training.slope import double_pruned


@pytest.mark.parametrize("after", range(1, STEPS))
def test_a_training_interrupted_after_any_step_ends_with_the_same_bytes(
    tmp_path: Path, after: int
) -> None:
    whole = train(tmp_path, "whole", **SPARSE)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, reporter=Interrupted(after), **SPARSE)
    out = train(tmp_path, **SPARSE)
    assert checkpoint(out) == checkpoint(whole)
    assert losses(out) == losses(whole)
    runs = [json.loads(line) for line in (out / pretrain.RUNS).read_text().splitlines()]
    # The loop reports a step before it keeps it.
    assert [run["first_step"] for run in runs] == ([0, after - 1] if after > 1 else [0])


def test_dropout_is_resumed_too(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", "opt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, family="opt", reporter=Interrupted(5))
    assert checkpoint(train(tmp_path, family="opt")) == checkpoint(whole)


def test_a_training_that_is_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", **SPARSE)
    moments = random.Random(0)
    process = FORK.Process(target=train, args=(tmp_path,), kwargs=SPARSE)
    process.start()
    while not (tmp_path / "out.training" / FILE).exists():
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.2))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert checkpoint(train(tmp_path, **SPARSE)) == checkpoint(whole)


def test_weights_outside_their_mask_are_zero_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass takes a weight as it is, so nothing may ever write there."""
    step, seen = pretrain.SlopeJob.update, []

    def update(job: pretrain.SlopeJob, lr: float) -> None:
        step(job, lr)
        for layer in job.layers.values():
            assert not bool(layer.weight[~layer.row_mask].any())
            assert int(layer.weight.count_nonzero()) == int(layer.row_mask.sum())
        seen.append(lr)

    monkeypatch.setattr(pretrain.SlopeJob, "update", update)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, reporter=Interrupted(5), **SPARSE, lr=0.1)
    train(tmp_path, **SPARSE, lr=0.1)
    assert len(seen) == STEPS + 1  # the fifth was not kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_multiplying_the_mask_in_once_more_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    plain = train(tmp_path, "plain", **SPARSE, precision=precision)

    def masked(x: Tensor, weight: Tensor, mask: Tensor, both: Tensor) -> Tensor:
        return double_pruned(x, weight * mask, mask, both)

    monkeypatch.setattr(slope_linear, "double_pruned", masked)
    assert checkpoint(train(tmp_path, **SPARSE, precision=precision)) == checkpoint(plain)


def test_a_snapshot_of_another_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, reporter=Interrupted(3))
    with pytest.raises(ConfigError, match=r"out\.training/snapshot\.pt: is of another training"):
        train(tmp_path, lr=1e-2)


@pytest.mark.parametrize("options", [{}, {**SPARSE, "accumulate": 2}], ids=["dense", "sparse"])
def test_two_processes_have_the_losses_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    one = train(tmp_path, "one", **options)
    two_processes(lambda workers: train(tmp_path, "two", workers=workers, **options))
    two = tmp_path / "two"
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_a_random_model_is_made_by_the_first_of_two_processes(tmp_path: Path) -> None:
    settings = ["steps=1", "batch=2", "seqlen=16"]
    asked = requests.training("random:tiny-llama", settings, None, tmp_path / "out")
    quiet = Reporter(quiet=True)

    def work(workers: Workers) -> None:
        time.sleep(0.5 * (not workers.rank))  # the second process is there before the first
        train_to(asked, tmp_path / "out", 1, workers, StageStore(tmp_path / "store"), quiet)

    two_processes(work)
    assert (tmp_path / "out" / "ckpt_1.pt").is_file()


@pytest.mark.parametrize(
    "options", [{"accumulate": 4}, {"checkpointing": "blocks"}], ids=["accumulate", "blocks"]
)
def test_what_saves_memory_changes_no_loss(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = train(tmp_path, "plain", **SPARSE)
    assert losses(train(tmp_path, **SPARSE, **options)) == pytest.approx(losses(plain), rel=1e-5)


def test_a_checkpointed_block_is_computed_twice(tmp_path: Path) -> None:
    calls = {}
    for checkpointing in ("none", "blocks"):
        config = families.CONFIGS["llama"]()
        model = families.AutoModelForCausalLM.from_config(config)
        spec = TrainingSpec(checkpointing=checkpointing)
        job = pretrain.SlopeJob(model, spec, torch.Generator())
        model.train()
        seen: list[int] = []
        model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_, s=seen: s.append(1))
        job.loss(model, torch.zeros(1, 8, dtype=torch.int64)).backward()
        calls[checkpointing] = len(seen)
    assert calls == {"none": 1, "blocks": 2}


def test_products_in_bfloat16_follow_those_in_float32(tmp_path: Path) -> None:
    exact = losses(train(tmp_path, "exact", **SPARSE))
    narrow = train(tmp_path, **SPARSE, precision="bfloat16")
    assert losses(narrow) == pytest.approx(exact, rel=0.02)
    assert losses(narrow) != exact
    weights = torch.load(narrow / f"ckpt_{STEPS}.pt", weights_only=True)["model"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize("family", sorted(families.CONFIGS))
def test_every_family_is_trained(tmp_path: Path, family: str) -> None:
    found = losses(train(tmp_path, family=family, steps=3, lr=1e-2))
    assert len(found) == 3
    assert all(map(math.isfinite, found))


def test_the_learning_rate_rises_and_falls_as_it_says() -> None:
    spec = TrainingSpec(steps=10, lr=2.0, warmup=4, schedule="cosine")
    rates = [loop.learning_rate(spec, step) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[7] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi * 0.5)) / 2))
    assert rates == rates[:4] + sorted(rates[4:], reverse=True)
    assert min(rates[4:]) > 0.2
    constant = TrainingSpec(steps=10, lr=2.0)
    assert {loop.learning_rate(constant, step) for step in range(10)} == {2.0}


def test_windows_follow_from_the_seed_alone() -> None:
    ids, spec = torch.arange(1000), TrainingSpec(batch=4, seqlen=8)
    drawn = [loop.drawn(ids, spec, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert bool((drawn[0].diff(dim=1) == 1).all())


def test_the_numbers_of_the_process_are_left_as_they_were(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "llama")
    before = torch.get_rng_state()
    train(tmp_path, steps=1)
    assert torch.equal(torch.get_rng_state(), before)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"batch": 4, "accumulate": 3}, "4 windows of a step are not divisible by 1 processes"),
    ({"seqlen": 30_000, "batch": 1}, "the text has 20000 tokens, and a window 30000"),
    ({"lr": 1e30}, "the loss of step"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_trained_is_one_paragraph(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, **options)


def test_a_half_written_snapshot_is_not_read(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path, "asked", 1)
    kept.keep({"step": 1})
    (tmp_path / "snapshot.pt.unfinished").write_bytes(b"half")
    assert kept.last() == {"step": 1}
