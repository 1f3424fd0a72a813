"""Suites of kind `perplexity`: of one text, by the papers' protocol."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from trinity.harness.accuracy.suite import TextSuite
from trinity.harness.recipes.resolution import RATIO
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts import corpora
from trinity.harness.texts.corpora import BLANK_LINE, Tokenizer
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.harness.engines.engine import Engine


class PerplexitySuite(TextSuite):
    """Perplexity of one text.

    documents: the first ones only (None: all)   joiner: what stands between two
    """

    units: ClassVar[Mapping[str, str]] = {"perplexity": RATIO}

    kind: Literal["perplexity"]
    documents: PositiveInt | None = None
    joiner: str = BLANK_LINE

    def measure(
        self,
        engine: "Engine",
        tokenizer: Tokenizer,
        dense: "Callable[[], Engine] | None" = None,
    ) -> list[Measurement]:
        """One measurement; ConfigError if the text lacks documents that the suite is about."""
        # Imported here: it loads torch, and knowing which suites there are must not.
        from trinity.harness.accuracy import perplexity

        corpus = corpora.load(self.corpus, self.split)
        if len(corpus.documents) < (self.documents or 0):
            msg = (
                f"suite '{self.name}' is about the first {self.documents} documents of "
                f"{corpus.name} ({corpus.split}), and {corpus.source} holds "
                f"{len(corpus.documents)}: its perplexity would be another text's. Get the whole "
                f"file."
            )
            raise ConfigError(msg)
        text = replace(corpus, documents=corpus.documents[: self.documents])
        sizes = (self.seqlen, self.windows)
        return [
            perplexity.evaluate(engine, tokenizer, text, *sizes, name=self.name, joiner=self.joiner)
        ]
