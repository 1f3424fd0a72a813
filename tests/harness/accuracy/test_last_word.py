from itertools import pairwise

import pytest
import torch

from tests.harness import tokenizers
from tests.harness.tiny import BigramEngine, ByteTokenizer, saying
from trinity.harness.accuracy import last_word
from trinity.harness.texts import corpora
from trinity.harness.texts.corpora import TextCorpus
from trinity.methods.errors import ConfigError

LEAD = "one two three four five six seven eight nine ten eleven twelve"


def corpus(*documents: str) -> TextCorpus:
    return TextCorpus("made-up", "test", documents, "a test", "0")


def test_a_sentence_ends_in_a_word_and_keeps_all_before_it() -> None:
    found = last_word.examples(
        corpus(f"{LEAD} thirteen\nfourteen. And then there were more words.")
    )
    assert [example.word for example in found] == ["fourteen", "words"]
    assert found[0].context == f"{LEAD} thirteen"
    assert found[1].context == f"{LEAD} thirteen fourteen. And then there were more"


@pytest.mark.parametrize(
    "document",
    [
        "Too short a context for anyone.",
        f"{LEAD} ends in a number 3.12.",
        f"{LEAD} ends in it.",
        f"{LEAD} ends openly",
        f"* {LEAD} is a list item.",
        f">>> {LEAD} is code.",
        f"{LEAD}\n   breaks its indentation badly.",
    ],
)
def test_what_is_no_plain_sentence_is_left_out(document: str) -> None:
    assert last_word.examples(corpus(document)) == []


def test_indented_prose_counts() -> None:
    assert len(last_word.examples(corpus(f"   {LEAD}\n   is evenly indented."))) == 1


def test_the_word_is_right_if_every_token_of_it_is_the_most_likely() -> None:
    engine = BigramEngine(saying("a word"))
    text = corpus(f"{LEAD} a word.", f"{LEAD} a wore.", f"{LEAD} a mord.")
    found = last_word.evaluate(engine, ByteTokenizer(), text)
    assert found.samples == [1.0, 0.0, 0.0]
    assert found.value == pytest.approx(1 / 3)
    assert found.interval is not None
    assert found.interval.low < 1 / 3 < found.interval.high


def test_a_model_without_numbers_is_refused_with_the_sentence() -> None:
    engine = BigramEngine(torch.full((256, 256), torch.nan))
    with pytest.raises(ConfigError, match="the sentence that ends in 'word': the logits"):
        last_word.evaluate(engine, ByteTokenizer(), corpus(f"{LEAD} a word."))


def test_a_limit_takes_examples_from_the_whole_text() -> None:
    text = corpus(*(f"{LEAD} a {word}." for word in ("wora", "worb", "worc", "word")))
    engine = BigramEngine()
    last_word.evaluate(engine, ByteTokenizer(), text, limit=2)
    # The model never reads the last byte, so the context tells nothing: compare what was scored.
    assert [bytes(ids)[-3:] for ids in engine.read] == [b"wor", b"wor"]
    assert last_word.evenly_spaced(4, 2) == [0, 2]


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ConfigError, match="holds 0 sentences"):
        last_word.evaluate(BigramEngine(), ByteTokenizer(), corpus("Nothing here."))


def test_pydoc_holds_enough_examples_to_measure() -> None:
    assert len(last_word.examples(corpora.load("pydoc", "test"))) >= 100


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_every_kind_of_tokenizer_asks_for_the_word_and_nothing_else(kind: str) -> None:
    tokenizer = tokenizers.KINDS[kind]()
    tail = len(corpora.appended(tokenizer))
    assert tail == ("EOS" in kind)
    example = last_word.Example(f"{LEAD} a", "word")
    whole, word = last_word.split(tokenizer, example, tail)
    assert tokenizer.eos_token_id not in whole
    assert tokenizer.decode(word).strip() == ("a word" if "across" in kind else "word")
    bare = tokenizer(f"{LEAD} a word", add_special_tokens=False)["input_ids"]
    front = [tokenizer.bos_token_id] if "BOS" in kind else []
    assert whole == [*front, *bare]
    assert whole[len(whole) - len(word) :] == word


def test_a_tokenizer_that_appends_an_end_token_scores_the_same_words() -> None:
    text = corpus(f"{LEAD} a word.", f"{LEAD} a wore.", f"{LEAD} a mord.")
    vocabulary = len(tokenizers.KINDS["byte-level"]())
    table = torch.zeros(vocabulary, vocabulary)
    ids = tokenizers.KINDS["byte-level"]()(" a word")["input_ids"]
    for before, after in pairwise(ids):
        table[before, after] = 10.0
    found = [
        last_word.evaluate(BigramEngine(table), tokenizers.KINDS[kind](), text).samples
        for kind in ("byte-level", "byte-level, BOS", "byte-level, EOS", "byte-level, BOS and EOS")
    ]
    assert found == [[1.0, 0.0, 0.0]] * 4
