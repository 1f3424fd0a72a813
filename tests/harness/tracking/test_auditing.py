"""`trinity audit --dense`: what a checkpoint answers beside the model that it was made from."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.harness import families
from tests.harness.audit import llamas
from tests.harness.audit.llamas import VICTIM
from trinity.harness import cli

SIZES = ("--windows", "8", "--seqlen", "64")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llamas.save_dense(tmp_path_factory.mktemp("of audits") / "dense")


@pytest.fixture
def audit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """What `trinity audit` ends with, and says."""
    monkeypatch.setenv("TRINITY_CACHE", str(tmp_path / "store"))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trinity", "audit", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return run


def _outcomes(said: str) -> dict[str, Any]:
    return {one["metric"]: one for one in json.loads(said)["against"]["outcomes"]}


def test_a_checkpoint_is_compared_sample_by_sample(audit: Any, dense: Path, tmp_path: Path) -> None:
    path, _ = llamas.save("pack-quantized", tmp_path / "model", llamas.dense_weights())
    code, out, _ = audit(str(path), "--dense", str(dense), *SIZES, "--json")
    assert code == 0
    found = _outcomes(out)
    assert set(found) == {"perplexity", "kl", "top1_agreement"}
    assert {one["samples"] for one in found.values()} == {8}
    assert 0 < found["kl"]["ours"] < 0.5
    assert (found["kl"]["baseline"], found["top1_agreement"]["baseline"]) == (0, 1)
    assert found["kl"]["verdict"] == "worse"
    assert 0.5 < found["top1_agreement"]["ours"] < 1
    assert found["perplexity"]["interval"] is not None
    errors = json.loads(out)["against"]["errors"]
    assert 0.01 < errors[VICTIM] < 0.2
    assert errors["lm_head"] == 0


def test_a_model_is_no_worse_than_itself(audit: Any, dense: Path) -> None:
    code, out, _ = audit(str(dense), "--dense", str(dense), *SIZES, "--json")
    assert code == 0
    found = _outcomes(out)
    assert {one["verdict"] for one in found.values()} == {"no difference shown"}
    assert found["perplexity"]["effect"] == 1
    assert set(json.loads(out)["against"]["errors"].values()) == {0.0}


def test_a_layer_that_only_the_dense_model_shows_to_be_wrong_ends_with_1(
    audit: Any, dense: Path, tmp_path: Path
) -> None:
    path, _ = llamas.save("gguf", tmp_path / "model", llamas.with_rows_exchanged())
    assert audit(str(path))[0] == 0
    code, out, _ = audit(str(path), "--dense", str(dense), *SIZES)
    assert code == 1
    assert VICTIM in out.partition("Faults")[2]
    assert "On text" in out


def test_progress_says_which_of_the_two_models_is_at_work(
    audit: Any, dense: Path, tmp_path: Path
) -> None:
    path, _ = llamas.save("pack-quantized", tmp_path / "packed", llamas.dense_weights())
    _, _, err = audit(str(path), "--dense", str(dense), *SIZES)
    for whose in ("packed", "dense"):
        assert f" {whose}: perplexity-pydoc" in err


def test_a_fault_that_leaves_no_model_is_said_all_the_same(
    audit: Any, dense: Path, tmp_path: Path
) -> None:
    path, _ = llamas.save("gptq", tmp_path / "model", llamas.dense_weights())
    tensors = load_file(path / "model.safetensors")
    del tensors[f"{VICTIM}.scales"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    code, out, _ = audit(str(path), "--dense", str(dense), *SIZES)
    assert code == 1
    assert "scales is missing" in out
    assert "not compared" in out


def test_a_model_of_another_architecture_is_refused(audit: Any, tmp_path: Path) -> None:
    path, _ = llamas.save("awq", tmp_path / "model", llamas.dense_weights())
    families.save("llama", tmp_path / "other")
    code, out, err = audit(str(path), "--dense", str(tmp_path / "other"), *SIZES)
    assert (code, out) == (2, "")
    assert "Name the model" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "perplexity-pydoc"], "Name it with --dense"),
        (["--windows", "8"], "Name it with --dense"),
        (["--dense", "package:no-such"], "there is no such package model"),
        (["--dense", ".", "--suite", "perplexity-pidoc"], "perplexity-pydoc"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_is_read(
    words: list[str], said: str, audit: Any, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()  # and nothing in it, which is not what is said
    code, _, err = audit(str(tmp_path / "model"), *words)
    assert code == 2
    assert said in err
