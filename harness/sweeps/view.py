"""One view of a sweep on stderr: what runs, what ended, how long the rest will take."""

from trinity.harness.sweeps.graph import Part
from trinity.harness.sweeps.plan import Plan
from trinity.harness.sweeps.worker import Outcome
from trinity.harness.terminal.progress import Reporter


class View:
    """Says what happens to the parts of a sweep."""

    def __init__(self, plan: Plan, at_once: int, reporter: Reporter) -> None:
        self.at_once, self.reporter = at_once, reporter
        self.total = sum(key not in plan.refused for key in plan.graph)
        costs = plan.costs.items()
        self.expected = {key: cost.seconds for key, cost in costs if cost.seconds is not None}
        self.left_s = sum(self.expected.values())
        self.done, self.took_s, self.planned_s = 0, 0.0, 0.0

    def begun(self, part: Part) -> None:
        """A part runs."""
        self.reporter.working(part.name)

    def ended(self, part: Part, outcome: Outcome) -> None:
        """A part is over: a line for it, and those that it said."""
        self.reporter.working(part.name, over=True)
        for line in outcome.said:
            self.reporter.say(line)
        self.done += 1
        self._learn(self.expected.get(part.key, 0.0), outcome.seconds)
        if outcome.failure:
            self.reporter.write(f"{part.name} failed: {outcome.failure.reason}")
            if outcome.failure.trace:
                self.reporter.write(outcome.failure.trace.rstrip())
            return
        self.reporter.say(f"{self.done} of {self.total}: {part.name}, {outcome.seconds:.1f} s")
        self.reporter.all_parts(self.done, self.total, self._left())

    def _learn(self, expected: float, took: float) -> None:
        self.left_s -= expected
        if took > 1 and expected:  # what took no time was in the store and says nothing of others
            self.took_s += took
            self.planned_s += expected

    def _left(self) -> float | None:
        if not self.expected:
            return None
        factor = self.took_s / self.planned_s if self.planned_s else 1.0
        return factor * self.left_s / self.at_once
