"""Suites of kind `last-word`: the last word of a sentence, predicted."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from trinity.harness.accuracy.suite import MeasuredSuite
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts import corpora
from trinity.harness.texts.corpora import Tokenizer

if TYPE_CHECKING:
    from trinity.harness.engines.engine import Engine


class LastWordSuite(MeasuredSuite):
    """Last-word prediction; limit: examples (None: all)."""

    kind: Literal["last-word"]
    corpus: str
    split: str
    limit: PositiveInt | None = None

    def data(self) -> SuiteData:
        """The text."""
        return SuiteData(texts=((self.corpus, self.split),))

    def measure(
        self,
        engine: "Engine",
        tokenizer: Tokenizer,
        dense: "Callable[[], Engine] | None" = None,
    ) -> list[Measurement]:
        """One measurement."""
        # Imported here: it loads torch, and knowing which suites there are must not.
        from trinity.harness.accuracy import last_word

        corpus = corpora.load(self.corpus, self.split)
        return [last_word.evaluate(engine, tokenizer, corpus, self.limit, name=self.name)]
