"""harness/runs/train.py: what `trinity train` leaves."""

from pathlib import Path

import pytest
import torch

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.runs import requests
from trinity.harness.runs.outputs import compress_to
from trinity.harness.runs.train import train_to
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training.workers import alone
from trinity.methods.errors import ConfigError

QUIET = Reporter(quiet=True)
FIELDS = ["steps=4", "batch=2", "seqlen=32", "pattern=2:4", "rank=2", "adapter_share=0.5"]


def test_a_model_that_was_trained_is_compressed_and_no_snapshot_is_left(tmp_path: Path) -> None:
    out, store = tmp_path / "trained", StageStore(tmp_path / "store")
    asked = requests.training("random:tiny-llama", FIELDS, None, out)
    result = train_to(asked, out, 1, alone(torch.device("cpu")), store, QUIET)
    assert (result["steps"], result["resumed_at"]) == (4, [])
    assert {path.name for path in tmp_path.iterdir()} == {"trained", "store"}
    compressing = requests.compression(str(out), "slope", [], "float32", tmp_path / "packed")
    compress_to(compressing, tmp_path / "packed", store, QUIET)
    formats = Checkpoint.open(tmp_path / "packed").formats
    labels = {name: found.label for name, found in formats.items()}
    assert labels["model.layers.1.mlp.up_proj"] == "2:4 float32 + rank 2"
    assert labels["model.layers.0.self_attn.q_proj"] == "float32"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("step=3", "unknown key `step`. Did you mean steps"),
        ("dataset=wikitxt2", "'wikitxt2' is unknown"),
        ("precision=float16", "`precision`"),
    ],
)
def test_a_wrong_field_is_refused_before_anything_is_loaded(
    tmp_path: Path, field: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        requests.training("random:tiny-llama", [field], None, tmp_path / "out")
