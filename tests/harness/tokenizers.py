"""One tokenizer of each kind that published models have, made here: no file, no network."""

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>"]


def _fast(tokenizer: Tokenizer, template: str) -> Any:
    """template: what stands around a text, as '<s> $A </s>'"""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, n) for n, name in enumerate(SPECIALS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def _byte_level(template: str, prefix_space: bool = False) -> Any:
    """GPT-2's and Llama 3's kind: bytes, a word with the space before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġw", "Ġwo", "Ġwor", "Ġword"]
    vocabulary = {token: n for n, token in enumerate([*SPECIALS, *alphabet, *words])}
    merges = [("Ġ", "w"), ("Ġw", "o"), ("Ġwo", "r"), ("Ġwor", "d")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, template)


def _sentencepiece(template: str) -> Any:
    """Llama 2's kind: a space in front of every text, spaces as part of words."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["▁w", "▁wo", "▁wor", "▁word"]
    vocabulary = {token: n for n, token in enumerate([*SPECIALS, "<unk>", "▁", *letters, *words])}
    merges = [("▁", "w"), ("▁w", "o"), ("▁wo", "r"), ("▁wor", "d")]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _fast(tokenizer, template)


def _joining(template: str) -> Any:
    """A kind that merges across spaces, so that a word changes the tokens before it."""
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: n for n, token in enumerate([*SPECIALS, *letters, "a "])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", " ")]))
    tokenizer.decoder = decoders.Fuse()
    return _fast(tokenizer, template)


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: _byte_level("$A"),
    "byte-level with a prefix space": lambda: _byte_level("$A", prefix_space=True),
    "byte-level, BOS": lambda: _byte_level("<s> $A"),
    "byte-level, EOS": lambda: _byte_level("$A </s>"),
    "byte-level, BOS and EOS": lambda: _byte_level("<s> $A </s>"),
    "sentencepiece, BOS": lambda: _sentencepiece("<s> $A"),
    "sentencepiece, BOS and EOS": lambda: _sentencepiece("<s> $A </s>"),
    "merging across spaces, EOS": lambda: _joining("$A </s>"),
}
