"""Every figure with rows of its own, in the order in which they are shown."""

from collections.abc import Sequence

from trinity.harness.figures import memory, spread, timing, tradeoff
from trinity.harness.figures.figure import Figure
from trinity.harness.figures.shown import Shown


def figures(runs: Sequence[Shown]) -> dict[str, Figure]:
    """The figures, by their names."""
    made = (
        tradeoff.against_bits(runs),
        tradeoff.against_speed(runs),
        timing.latencies(runs),
        timing.roofline(runs),
        memory.memory(runs),
        spread.seeds(runs),
        spread.history(runs),
    )
    return {figure.name: figure for figure in made}
