"""Suites of kind `fidelity`: closeness to the dense model's distributions on a text."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from trinity.harness.accuracy.suite import TextSuite
from trinity.harness.recipes.resolution import NATS, POINTS
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts import corpora
from trinity.harness.texts.corpora import Tokenizer
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.harness.engines.engine import Engine


class FidelitySuite(TextSuite):
    """Closeness to the dense model's distributions on a text; sizes as of a perplexity."""

    needs_dense = True
    units: ClassVar[Mapping[str, str]] = {"kl": NATS, "top1_agreement": POINTS}

    kind: Literal["fidelity"]

    def measure(
        self,
        engine: "Engine",
        tokenizer: Tokenizer,
        dense: "Callable[[], Engine] | None" = None,
    ) -> list[Measurement]:
        """Divergence and agreement; ConfigError where no dense model is at hand."""
        # Imported here: it loads torch, and knowing which suites there are must not.
        from trinity.harness.accuracy import fidelity

        if dense is None:
            msg = f"suite '{self.name}' compares with the dense model, and none is at hand."
            raise ConfigError(msg)
        corpus, sizes = corpora.load(self.corpus, self.split), (self.seqlen, self.windows)
        return fidelity.evaluate(engine, dense(), tokenizer, corpus, *sizes, name=self.name)
