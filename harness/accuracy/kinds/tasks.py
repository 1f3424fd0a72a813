"""Suites of kind `tasks`: zero-shot accuracy through lm-eval."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from trinity.harness.accuracy import sizes, task_data
from trinity.harness.accuracy.suite import MeasuredSuite
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.recipes.resolution import POINTS, Wanted
from trinity.harness.records.facts import AVERAGE, Sized
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts.corpora import Tokenizer
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.harness.engines.engine import Engine


class TasksSuite(MeasuredSuite):
    """Zero-shot accuracy through lm-eval.

    versions: lm-eval's, of the tasks; another installed version is refused
    limit: examples a task (None: all)
    """

    kind: Literal["tasks"]
    tasks: tuple[str, ...] = Field(min_length=1)
    metric: Literal["acc"] = "acc"
    num_fewshot: Literal[0] = 0
    versions: dict[str, str] = Field(default_factory=dict)
    limit: PositiveInt | None = None

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            msg = "names a task twice, which would count twice in the average"
            raise ValueError(msg)
        return value

    def data(self) -> SuiteData:
        """The tasks."""
        return SuiteData(tasks=self.tasks)

    def tokens(self) -> int:
        """Of the tasks' questions and answers."""
        shapes = [sizes.TASK_EXAMPLES.get(task, sizes.OTHER_TASK) for task in self.tasks]
        return sum(min(count, self.limit or count) * length for count, length in shapes)

    def sizes_resolving(self, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """The limit; ConfigError if the tasks have too few questions, or nobody knows how many."""
        if POINTS not in wanted:
            return {}
        # Imported here: numpy is slow to import, and few suites are sized so.
        from trinity.harness.statistics import power

        asked = wanted[POINTS]
        available = [task_data.examples(task) for task in self.tasks]
        known = [number for number in available if number is not None]
        if len(known) < len(available):
            unknown = self.tasks[available.index(None)]
            msg = (
                f"suite '{self.name}': how many questions {unknown} has is known to lm-eval only, "
                f"so none can be chosen to resolve {asked.text}. Give the suite a `limit`."
            )
            raise ConfigError(msg)
        limit = power.questions_for(asked.value, known)
        if limit is None:
            best = 100 * power.resolution(known)
            msg = (
                f"suite '{self.name}' cannot resolve {asked.text}: all {sum(known)} questions of "
                f"its tasks at hand resolve {best:.2f} points (80% power at 5%, if two models "
                f"disagree in {power.DISCORDANCE:.0%} of them). Ask for a larger difference, or "
                f"name more tasks."
            )
            raise ConfigError(msg)
        return {"limit": limit}

    def resolved(self, wanted: Mapping[str, Wanted], found: Sequence[Measurement]) -> list[Sized]:
        """The same of all: what the questions resolve together."""
        if POINTS not in wanted:
            return [Sized() for _ in found]
        # Imported here: numpy is slow to import, and few suites are sized so.
        from trinity.harness.statistics import power

        said = Sized(
            resolve=wanted[POINTS].text,
            resolution=power.resolution([len(m.samples) for m in found if m.name != AVERAGE]),
            discordance=power.DISCORDANCE,
        )
        return [said for _ in found]

    def measure(
        self,
        engine: "Engine",
        tokenizer: Tokenizer,
        dense: "Callable[[], Engine] | None" = None,
    ) -> list[Measurement]:
        """One measurement a task, and the average of several."""
        # Imported here: it imports lm_eval, which takes seconds.
        from trinity.harness.accuracy import tasks

        return tasks.evaluate(
            engine, tokenizer, self.tasks, self.limit, suite=self.name, versions=self.versions
        )
