"""What every kind of accuracy suite is: a frozen model of its sizes that knows what it reads, what
it costs and how it is measured.

A kind is one class in one file of `kinds/`, or in a package of someone else's.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from trinity.harness.accuracy import sizes
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.recipes.resolution import Wanted
from trinity.harness.records.facts import LOSSES, Sized, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts.corpora import Tokenizer
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.harness.engines.engine import Engine

Window = Annotated[int, Field(ge=2)]


class Suite(BaseModel):
    """A suite by its name; the fields of a kind are the keys of its YAML.

    needs_dense: whether it compares with the model before compression
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_dense: ClassVar[bool] = False

    kind: str
    name: str

    @property
    def window(self) -> int | None:
        """Tokens of the windows that a text is cut into; None where nothing is cut."""
        return None

    def tokens(self) -> int:
        """About how many tokens the model reads, for estimates."""
        return sizes.UNKNOWN

    def sizes_resolving(self, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """The sizes that show the differences in this suite's units; none where there is no such.

        wanted: by unit, as `resolution.wanted` gives it
        """
        return {}

    def resolved(self, wanted: Mapping[str, Wanted], found: Sequence[Measurement]) -> list[Sized]:
        """What each of the suite's measurements must say of a difference that was asked for."""
        return [Sized() for _ in found]


class MeasuredSuite(Suite):
    """A suite that one engine answers."""

    @abstractmethod
    def data(self) -> SuiteData:
        """What it reads."""

    @abstractmethod
    def measure(
        self,
        engine: "Engine",
        tokenizer: Tokenizer,
        dense: "Callable[[], Engine] | None" = None,
    ) -> list[Measurement]:
        """The measurements, under the suite's name or, of tasks, the task's.

        dense: the model before compression, for kinds that need it
        """


class ComparedSuite(Suite):
    """A suite that compares what another suite measured of a model and of the dense one."""

    needs_dense = True

    @property
    @abstractmethod
    def compared(self) -> SuiteSpec:
        """The suite whose measurements are compared, with its sizes."""

    @abstractmethod
    def compare(
        self, ours: Sequence[Measurement], dense: Sequence[Measurement]
    ) -> list[Measurement]:
        """ours, dense: of `compared`"""


class TextSuite(MeasuredSuite):
    """A suite on windows of one text.  windows: the first ones only (None: all)

    units: of each metric, the unit of a difference
    """

    units: ClassVar[Mapping[str, str]] = {}

    corpus: str
    split: str
    seqlen: Window
    windows: PositiveInt | None = None

    @property
    def window(self) -> int:
        """As the suite says."""
        return self.seqlen

    def tokens(self) -> int:
        """Of its windows, or of the whole text."""
        whole = sizes.TEXT_TOKENS.get(self.corpus, sizes.OTHER_TEXT)
        return min(whole, self.windows * self.seqlen) if self.windows else whole

    def data(self) -> SuiteData:
        """The text."""
        return SuiteData(texts=((self.corpus, self.split),))

    def sizes_resolving(self, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """The windows; ConfigError if the text has too few."""
        asked = {metric: wanted[unit] for metric, unit in self.units.items() if unit in wanted}
        if not asked:
            return {}
        # Imported here: numpy is slow to import, and few suites are sized so.
        from trinity.harness.statistics import power

        most = int(sizes.TEXT_TOKENS.get(self.corpus, sizes.OTHER_TEXT) / self.seqlen)
        chosen = []
        for metric, one in asked.items():
            prior = power.PRIORS[metric]
            windows = power.windows_for(_mean_difference(one, metric), prior, self.seqlen, most)
            if windows is None:
                msg = (
                    f"suite '{self.name}' cannot resolve {one.text}: all of the about {most} "
                    f"windows of {self.seqlen} tokens of {self.corpus} are too few (80% power at "
                    f"5%, if the differences of windows spread by {prior.of(self.seqlen):.3g}). "
                    f"Ask for a larger difference."
                )
                raise ConfigError(msg)
            chosen.append(windows)
        return {"windows": max(chosen)}

    def resolved(self, wanted: Mapping[str, Wanted], found: Sequence[Measurement]) -> list[Sized]:
        """Of each metric that a difference was asked of, with the clusters that windows have."""
        # Imported here: numpy is slow to import, and few suites are sized so.
        from trinity.harness.statistics import clusters, power

        said = []
        for m in found:
            asked = wanted.get(self.units.get(m.metric, ""))
            if asked is None:
                said.append(Sized())
                continue
            prior, text = power.PRIORS[m.metric], Text.of(m)
            alike = text.clusters or clusters.blocks(text.windows or 0)
            found_resolution = power.resolution_of_windows(prior, self.seqlen, alike)
            said.append(
                Sized(
                    resolve=asked.text,
                    resolution=_as_effect(found_resolution, m.metric),
                    deviation=prior.of(self.seqlen),
                    alike=prior.alike,
                )
            )
        return said


def _mean_difference(wanted: Wanted, metric: str) -> float:
    """In the unit of samples: of perplexities, a difference of losses."""
    return math.log(wanted.value) if metric == LOSSES else wanted.value


def _as_effect(difference: float, metric: str) -> float | None:
    """The reverse; None where nothing could be shown."""
    if math.isinf(difference):
        return None
    return math.exp(difference) if metric == LOSSES else difference
