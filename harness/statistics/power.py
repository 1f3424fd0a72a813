"""How many questions show a difference of a wanted size, before any is asked.

By normal theory: of a question, the difference of two models is -1, 0 or 1, so its variance is at
most the share of questions that only one of the two gets right.  That share is assumed.
"""

import math
from collections.abc import Sequence

from trinity.harness.statistics.paired import ALPHA, POWER

# A cautious guess: compressed rows of the committed records and the dense ones beside them, 100
# questions a task, have a median of 0.31, and three quarters of them less than this.
DISCORDANCE = 0.4


def resolution(questions: Sequence[int], discordance: float = DISCORDANCE) -> float:
    """The least difference of the means of tasks that one paired test finds POWER of the time.

    questions: [tasks]   discordance: share that only one of two models gets right
    """
    # Imported here, and not all of scipy.stats: three times faster, for one function.
    from scipy.special import ndtri

    variance = discordance * math.fsum(1 / n for n in questions) / len(questions) ** 2
    return float(ndtri(1 - ALPHA / 2) + ndtri(POWER)) * math.sqrt(variance)


def questions_for(wanted: float, available: Sequence[int]) -> int | None:
    """The least number of questions a task that resolves `wanted`; None if all of them do not.

    wanted: a difference of shares   available: [tasks]; a task with fewer questions gives them all
    """
    low, high = 1, max(available)
    if resolution(available) > wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if resolution([min(n, middle) for n in available]) <= wanted:
            high = middle
        else:
            low = middle + 1
    return low
