"""`kill -9` in the middle, then the same command: the same bytes as a run that was left alone."""

import hashlib
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.faults import jobs, processes
from trinity.harness.sources.sources import tiny_llama
from trinity.harness.store.stages import StageStore

BLOCKS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of six blocks with the byte tokenizer of the built-in random model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    store = StageStore(tmp_path_factory.mktemp("store"))
    AutoTokenizer.from_pretrained(tiny_llama(store).path).save_pretrained(folder)
    return folder


def _words(model: Path, out: Path) -> list[str]:
    """Of the command."""
    settings = ["pattern=2:4", "calibration.dataset=pydoc", "calibration.rule=concatenated"]
    settings += ["calibration.samples=8", "calibration.seqlen=128"]
    words = ["compress", str(model), "--method", "slim", "--out", str(out)]
    return words + [word for setting in settings for word in ("--set", setting)]


def _finish(place: Path, model: Path) -> None:
    """The command in a process, to its end; cache and result are in `place`."""
    words = _words(model, place / "out")
    said = place / "said.txt"
    assert processes.done(said, jobs.command, words, place / "cache") == 0, said.read_text("utf-8")


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def _finished_blocks(cache: Path) -> int:
    return len(list(cache.glob("block/??/*/stage.json")))


@pytest.fixture(scope="module")
def unbroken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the checkpoint of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("unbroken")
    _finish(folder, model)
    return _hashes(folder / "out")


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_run_ends_with_the_same_bytes(
    model: Path, unbroken: dict[str, str], tmp_path: Path, after: int
) -> None:
    cache, words = tmp_path / "cache", _words(model, tmp_path / "out")
    with processes.started(tmp_path / "said.txt", jobs.command, words, cache) as process:
        while process.is_alive() and (
            _finished_blocks(cache) < after or not (cache / "calibration").exists()
        ):
            time.sleep(0.0005)
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "out").exists()
    survived = _finished_blocks(cache)
    assert after <= survived < BLOCKS
    _finish(tmp_path, model)
    assert _hashes(tmp_path / "out") == unbroken
