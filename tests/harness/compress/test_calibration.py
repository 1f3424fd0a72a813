import random

import pytest
import torch

from tests.harness.tiny import ByteTokenizer
from trinity.harness.compress import calibration
from trinity.harness.texts.corpora import TextCorpus
from trinity.methods.errors import ConfigError

TOKENIZER = ByteTokenizer()


def corpus(*lengths: int) -> TextCorpus:
    """Documents of so many bytes, no two windows of which are alike."""
    rng = random.Random(7)
    texts = ("".join(rng.choices("abcdefghijklmnop", k=length)) for length in lengths)
    return TextCorpus("made-up", "train", tuple(texts), "a test", "")


def drawn_as_the_papers_do(
    documents: tuple[str, ...], samples: int, seqlen: int, seed: int
) -> list[list[int]]:
    """SparseGPT's and Wanda's `get_c4`, on Python's global generator and without torch."""
    state = random.getstate()
    random.seed(seed)
    windows = []
    for _ in range(samples):
        while True:
            tokens = list(documents[random.randint(0, len(documents) - 1)].encode())
            if len(tokens) > seqlen:
                break
        start = random.randint(0, len(tokens) - seqlen - 1)
        windows.append(tokens[start : start + seqlen])
    random.setstate(state)
    return windows


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_windows_are_those_of_the_papers_sampling_code(seed: int) -> None:
    text = corpus(*range(5, 60))
    drawn = calibration.sample(text, TOKENIZER, 12, 24, seed)
    assert drawn.ids.tolist() == drawn_as_the_papers_do(text.documents, 12, 24, seed)
    assert drawn.ids.dtype == torch.int64


def test_a_large_corpus_gives_the_windows_of_the_papers_sampling_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "_COUNTED_UP_FRONT", 10)
    text = corpus(*range(5, 60))
    drawn = calibration.sample(text, TOKENIZER, 12, 24, 3)
    assert drawn.ids.tolist() == drawn_as_the_papers_do(text.documents, 12, 24, 3)


def test_a_document_of_exactly_the_window_is_too_short() -> None:
    drawn = calibration.sample(corpus(16, 17), TOKENIZER, 1, 16, 0)
    assert drawn.ids[0].tolist() == list(corpus(16, 17).documents[1].encode())[:16]


def test_the_global_generator_is_left_alone() -> None:
    random.seed(5)
    state = random.getstate()
    calibration.sample(corpus(*[50] * 9), TOKENIZER, 4, 8, 0)
    assert random.getstate() == state


def test_one_seed_gives_one_hash_and_another_seed_another() -> None:
    text = corpus(*[80] * 20)
    first, again, other = (calibration.sample(text, TOKENIZER, 8, 32, seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256


def test_too_few_long_documents_are_counted_and_the_other_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"3 of its 5 documents longer than 20.*'concatenated'"):
        calibration.sample(corpus(10, 20, 30, 40, 50), TOKENIZER, 4, 20, 0)


def test_a_large_corpus_without_long_documents_does_not_draw_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "_COUNTED_UP_FRONT", 10)
    monkeypatch.setattr(calibration, "_DRAWS_PER_SAMPLE", 50)
    with pytest.raises(ConfigError, match="0 of 100 documents drawn from its 40"):
        calibration.sample(corpus(*[9] * 40), TOKENIZER, 2, 16, 0)


def test_concatenated_windows_lie_in_the_joined_text() -> None:
    text = corpus(*[10] * 30)
    joined = "\n\n".join(text.documents)
    drawn = calibration.sample(text, TOKENIZER, 6, 40, 0, rule="concatenated")
    assert drawn.rule == "concatenated"
    windows = [bytes(row).decode() for row in drawn.ids.tolist()]
    assert all(window in joined and "\n\n" in window for window in windows)
    starts = random.Random(0)
    expected = [starts.randint(0, len(joined) - 40 - 1) for _ in range(6)]
    assert [joined.index(window) for window in windows] == expected


def test_too_little_text_says_how_many_tokens_there_are_and_are_needed() -> None:
    with pytest.raises(ConfigError, match="has 22 tokens, and 3 samples of 8 need 24"):
        calibration.sample(corpus(10, 10), TOKENIZER, 3, 8, 0, rule="concatenated")


def test_no_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples must be at least 1"):
        calibration.sample(corpus(10), TOKENIZER, 0, 8, 0)


def test_a_bos_token_is_only_where_the_tokenizer_put_it() -> None:
    drawn = calibration.sample(corpus(9), ByteTokenizer(bos=True), 1, 9, 0)
    assert drawn.ids[0, 0] == 1
    many = calibration.sample(corpus(*[60] * 20), ByteTokenizer(bos=True), 20, 8, 0)
    assert (many.ids[:, 1:] != 1).all()
