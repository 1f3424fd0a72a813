"""What every kind of accuracy suite is: a frozen model of its sizes that knows what it reads, what
it costs and how it is measured.

A kind is one class in one file of `kinds/`, or in a package of someone else's.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from trinity.harness.accuracy import sizes
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts.corpora import Tokenizer

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

    def sizes_resolving(self, wanted: str) -> dict[str, Any]:
        """The sizes that show a difference of '4 points'; none of a kind without questions."""
        return {}


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
    """A suite on windows of one text.  windows: the first ones only (None: all)"""

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
