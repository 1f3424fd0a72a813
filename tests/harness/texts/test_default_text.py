"""Which text is calibrated on where a recipe leaves it open."""

import gzip
from pathlib import Path

import pytest

from trinity.harness.compress import calibration
from trinity.harness.hub import data_sets
from trinity.harness.recipes.recipe import CalibrationSpec
from trinity.harness.texts import corpora, default_text
from trinity.methods.errors import ConfigError


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data, and no hub."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(corpora.DATA_DIR, str(folder))
    monkeypatch.setattr(data_sets, "obtainable", lambda dataset, file=None: False)
    return folder


def put(folder: Path, name: str, stem: str) -> None:
    (folder / name).mkdir()
    (folder / name / f"{stem}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))


def test_the_default_is_c4_and_then_what_is_at_hand(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = CalibrationSpec(seed=3)
    found = default_text.first_at_hand(asked)
    assert (found.dataset, found.rule, found.seed) == ("pydoc", "concatenated", 3)
    put(local, "c4-sample", "c4_sample")
    assert default_text.first_at_hand(asked).dataset == "c4-sample"
    put(local, "c4", "train")
    assert default_text.first_at_hand(asked) is asked
    monkeypatch.setenv(corpora.DATA_DIR, str(local.parent))
    monkeypatch.setattr(data_sets, "obtainable", lambda dataset, file=None: dataset == "allenai/c4")
    assert default_text.first_at_hand(asked) is asked


def test_what_is_asked_for_stays(local: Path) -> None:
    named = CalibrationSpec(dataset="c4")
    assert default_text.first_at_hand(named) is named
    sized = default_text.first_at_hand(CalibrationSpec(samples=5, seqlen=64))
    assert (sized.dataset, sized.samples, sized.seqlen) == ("pydoc", 5, 64)


def test_the_last_text_has_enough_for_its_windows(local: Path) -> None:
    spec = default_text.first_at_hand(CalibrationSpec())
    words = sum(len(text.split()) for text in corpora.load(spec.dataset, spec.split).documents)
    assert words > spec.samples * spec.seqlen  # a token is seldom longer than a word
    assert calibration.Rule.__args__[1] == spec.rule


def test_a_models_context_bounds_windows_that_nobody_asked_for(local: Path) -> None:
    bounded = default_text.bounded(CalibrationSpec(samples=4), 64, "calibration")
    assert (bounded.seqlen, bounded.samples) == (64, 4)
    fallback = default_text.first_at_hand(CalibrationSpec())
    assert default_text.bounded(fallback, 64, "calibration").seqlen == 64
    with pytest.raises(ConfigError, match=r"calibration\.seqlen 65 is longer than the 64 pos"):
        default_text.bounded(CalibrationSpec(seqlen=65), 64, "calibration")
