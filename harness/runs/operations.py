"""Products that a run multiplies, counted from sizes: a multiplication and an addition are two.

Tests compare them with what torch counts in a run.  docs/scaling.md has what of a run is not here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trinity.harness.accuracy.scoring import LONGEST_FORWARD
from trinity.harness.accuracy.suite import Suite, TextSuite
from trinity.harness.checkpoints.block import PANEL
from trinity.harness.recipes.recipe import CalibrationSpec

# Linears of a block that share an input, [out, in] of each; groups in the order of execution.
Groups = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Read:
    """What a model reads.  pairs: a position and one that it may see, of one forward"""

    tokens: int
    pairs: int


def calibrated(
    groups: Groups, blocks: int, attention: int, text: CalibrationSpec, order: str
) -> float:
    """Forwards of blocks for their statistics, and to hand their compressed outputs on.

    attention: operations of one block for a pair of positions   order: of `compress`
    A pass for statistics ends where the last wanted input is known.  Nobody reads the outputs of
    the last block.
    """
    sizes = [sum(out * d_in for out, d_in in group) for group in groups]
    # Of the passes of a block, the groups that are computed: before the last, or before each.
    passes = [len(groups) - 1] if order == "block" else list(range(len(groups)))
    weights = blocks * sum(sum(sizes[:computed]) for computed in passes)
    attended = blocks * sum(computed > 0 for computed in passes)
    weights += (blocks - 1) * sum(sizes)
    attended += blocks - 1
    tokens = text.samples * text.seqlen
    return 2.0 * tokens * weights + float(attended) * attention * tokens * text.seqlen


def squared(groups: Groups, blocks: int, tokens: int) -> float:
    """X^T X of every input, which the linears of a group share."""
    return 2.0 * blocks * tokens * sum(group[0][1] ** 2 for group in groups)


def reported(groups: Groups, blocks: int) -> float:
    """The error of every layer and its norm: two products with X^T X, a panel and what is below."""
    total = 0
    for out, d_in in (shape for group in groups for shape in group):
        panels = range(0, d_in, PANEL)
        total += 2 * 2 * sum(out * min(PANEL, d_in - at) * (d_in - at) for at in panels)
    return float(blocks * total)


def forwards(weights: int, attention: int, read: Read) -> float:
    """Of a whole model.

    weights: that a token goes through   attention: operations for a pair of positions
    """
    return 2.0 * weights * read.tokens + float(attention) * read.pairs


def read_by(asked: Sequence[Suite]) -> Read:
    """By suites: windows of one text once for all that read them, other texts by each."""
    alone = sum(suite.tokens() for suite in asked if not isinstance(suite, TextSuite))
    found = windows(asked)
    of_windows = sum(tokens * seqlen for (_, _, seqlen), tokens in found.items())
    return Read(alone + sum(found.values()), alone * LONGEST_FORWARD + of_windows)


def windows(asked: Sequence[Suite]) -> Mapping[tuple[str, str, int], int]:
    """Tokens by corpus, split and length of a window."""
    found: dict[tuple[str, str, int], int] = {}
    for suite in asked:
        if isinstance(suite, TextSuite):
            text = (suite.corpus, suite.split, suite.seqlen)
            found[text] = max(found.get(text, 0), suite.tokens())
    return found
