"""benchmarks/mkor_training.py: every optimizer trains both models, rehearsed for two steps."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import mkor_training
from trinity.harness.terminal.progress import Reporter


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("name", mkor_training.OPTIMIZERS)
def test_an_optimizer_trains_a_small_model(kind: str, name: str) -> None:
    ids = torch.randint(0, 256, (500,), generator=torch.Generator().manual_seed(0))
    lr = mkor_training.OPTIMIZERS[name][1][0]
    run = mkor_training.trained(kind, name, lr, 0, 2, ids)
    # Random bytes under random weights: about the logarithm of the vocabulary.
    assert run["losses"] == pytest.approx([math.log(257)] * 2, rel=0.1)


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two optimizers whose losses are known: the middle rate is the first one's best."""
    best = {"SGD": 0.1, "LAMB": 3e-2}
    chosen = {name: mkor_training.OPTIMIZERS[name] for name in best}
    monkeypatch.setattr(mkor_training, "OPTIMIZERS", chosen)

    def trained(kind: str, name: str, lr: float, seed: int, steps: int, _: object) -> object:
        loss = (2 if lr == best[name] else 4) + 0.1 * (seed % 2) - 0.5 * (name == "LAMB")
        return {"losses": [5.0, *[loss] * (steps - 1)], "seconds": 1.0, "lr": lr, "seed": seed}

    monkeypatch.setattr(mkor_training, "trained", trained)


@pytest.mark.usefixtures("rehearsed")
def test_every_optimizer_runs_at_its_best_rate_and_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = mkor_training.compared("masked", ["SGD", "LAMB"], 2, 20, Reporter())
    rates = {name: {run["lr"] for run in runs} for name, runs in found.items()}
    assert rates == {"SGD": {0.1}, "LAMB": {3e-2}}
    said = capsys.readouterr().err
    assert "trainings: 2/10" in said
    assert "SGD: the best of three rates is 0.1, loss at the end 2.050 [1.415, 2.685]" in said


@pytest.mark.usefixtures("rehearsed")
def test_a_record_is_read_again_with_other_losses_and_edges_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, run = str(tmp_path / "made.json"), ["mkor_training.py", "--seeds", "2", "--steps", "20"]
    monkeypatch.setattr("sys.argv", [*run, "--targets", "2.2", "--json", made])
    mkor_training.main()
    first = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["mkor_training.py", "--read", made, "--targets", "2.2"])
    mkor_training.main()
    assert capsys.readouterr().out == first
    assert "| SGD | 0.1 | 11 [11, 11] | 2.050 [1.415, 2.685] |  | 0.0500 |" in first
    lamb = "10 [10, 10] | 1.550 [0.915, 2.185] | -0.500 [-0.500, -0.500] | 0.0500"
    assert f"| LAMB | 0.03, the highest tried | {lamb} |" in first
