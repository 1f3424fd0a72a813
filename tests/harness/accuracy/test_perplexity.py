import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.harness.tiny import BigramEngine, ByteTokenizer
from trinity.harness.accuracy import perplexity
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.statistics import intervals
from trinity.harness.texts import corpora
from trinity.harness.texts.corpora import TextCorpus
from trinity.methods.errors import ConfigError

CORPUS = TextCorpus("made-up", "test", ("first line\n", "", "second and last line"), "a test", "0")
JOINED = b"first line\n\n\n\n\nsecond and last line"


def loss_by_hand(engine: BigramEngine, window: bytes) -> float:
    """Mean over predicted bytes of log(sum(exp(row))) minus the entry, in Python floats."""
    losses = []
    for before, after in pairwise(window):
        row = engine.table[before].tolist()
        losses.append(math.log(math.fsum(map(math.exp, row))) - row[after])
    return math.fsum(losses) / len(losses)


def test_perplexity_is_exp_of_the_mean_window_loss_and_the_tail_is_dropped() -> None:
    engine = BigramEngine()
    found = perplexity.evaluate(engine, ByteTokenizer(), CORPUS, seqlen=8)
    expected = [loss_by_hand(engine, JOINED[start : start + 8]) for start in (0, 8, 16, 24)]
    assert found.samples == pytest.approx(expected, rel=1e-6)
    assert found.value == pytest.approx(math.exp(sum(expected) / 4), rel=1e-6)
    assert engine.read == [list(JOINED[start : start + 8]) for start in (0, 8, 16, 24)]


def test_windows_limits_the_first_ones_and_the_record_says_of_how_many() -> None:
    found = perplexity.evaluate(BigramEngine(), ByteTokenizer(), CORPUS, seqlen=8, windows=3)
    assert len(found.samples) == 3
    assert (found.details["windows"], found.details["windows_available"]) == (3, 4)
    assert found.details["stride"] == 8


def test_bos_is_at_the_start_of_the_text_and_in_no_other_window() -> None:
    engine = BigramEngine()
    found = perplexity.evaluate(engine, ByteTokenizer(bos=True), CORPUS, seqlen=8)
    assert engine.read[0] == [1, *JOINED[:7]]
    assert engine.read[1] == list(JOINED[7:15])
    assert found.details["bos_at_start_of_text"]


def test_long_windows_give_the_same_loss_as_one_pass_over_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = TextCorpus("long", "test", (JOINED.decode() * 10,), "a test", "0")
    whole = perplexity.evaluate(BigramEngine(), ByteTokenizer(), text, seqlen=300)
    monkeypatch.setattr("trinity.harness.accuracy.scoring._ROWS", 7)
    chunked = perplexity.evaluate(BigramEngine(), ByteTokenizer(), text, seqlen=300)
    assert whole.samples == pytest.approx(chunked.samples, rel=1e-12)


def test_a_window_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="seqlen is 64, and this model reads 2 to 32"):
        perplexity.evaluate(BigramEngine(max_length=32), ByteTokenizer(), CORPUS, seqlen=64)


def test_a_text_shorter_than_one_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="35 tokens and windows=None leave no window of 100"):
        perplexity.evaluate(BigramEngine(), ByteTokenizer(), CORPUS, seqlen=100)


def test_not_a_number_is_an_error_that_names_the_window() -> None:
    table = BigramEngine().table.clone()
    table[ord("d")] = math.nan  # of "second" and "and"
    with pytest.raises(ConfigError, match=r"window 3 of 4: the logits .* hold NaN or infinity"):
        perplexity.evaluate(BigramEngine(table), ByteTokenizer(), CORPUS, seqlen=8)


def test_a_perplexity_beyond_a_float_is_missing_with_its_reason_and_keeps_the_losses() -> None:
    engine = BigramEngine(1e4 * BigramEngine().table)
    found = perplexity.evaluate(engine, ByteTokenizer(), CORPUS, seqlen=8)
    mean = math.fsum(found.samples) / 4
    assert mean > perplexity.LARGEST_LOSS
    assert (found.value, found.interval) == (None, None)
    assert found.reason == f"exp({mean:.1f}), more than a float64 holds (exp(709.8))"


def test_an_interval_beyond_a_float_is_missing() -> None:
    assert intervals.perplexity_interval([600.0, 700.0, 800.0]) is None
    assert intervals.perplexity_interval([600.0, 605.0]) is not None


def test_a_token_that_the_model_rules_out_makes_perplexity_infinite() -> None:
    table = BigramEngine().table.clone()
    table[ord("c"), ord("o")] = -math.inf  # of "second", in the third window
    found = perplexity.evaluate(BigramEngine(table), ByteTokenizer(), CORPUS, seqlen=8)
    assert (found.value, found.samples) == (None, [])
    assert found.reason is not None
    assert found.reason.startswith("infinite: the model rules out a token of window 3 of 4")


def test_losses_are_those_of_the_papers_code_on_a_real_model(stories260k: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories260k).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    whole = corpora.load("pydoc", "test")
    corpus = TextCorpus(whole.name, whole.split, whole.documents[-8:], whole.source, whole.sha256)
    found = perplexity.evaluate(TorchEngine(model, 512, "reference"), tokenizer, corpus, 128, 4)
    ids = tokenizer("\n\n".join(corpus.documents), return_tensors="pt", verbose=False).input_ids
    total = 0.0
    for i in range(4):
        batch = ids[:, i * 128 : (i + 1) * 128]
        with torch.inference_mode():
            logits = model(batch).logits
        loss = functional.cross_entropy(logits[0, :-1].double(), batch[0, 1:])
        total += float(loss) * 128
        assert found.samples[i] == pytest.approx(float(loss), abs=1e-5)
    assert found.value == pytest.approx(math.exp(total / (4 * 128)), rel=1e-5)


def test_the_record_says_which_windows_are_alike() -> None:
    # Documents of two windows of eight bytes each, the blank line included; the last has none.
    text = TextCorpus("made-up", "test", ("fourteen bytes",) * 8, "a test", "0")
    details = perplexity.evaluate(BigramEngine(), ByteTokenizer(), text, seqlen=8).details
    assert details["clusters"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert details["clustered_by"] == "documents, at least 1 window"
