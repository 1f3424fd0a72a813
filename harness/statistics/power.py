"""How many questions or windows show a difference of a wanted size, before any is read.

Of a question, the difference of two models is -1, 0 or 1, so its variance is at most the share of
questions that only one of the two gets right.  That share is assumed, and normal theory does the
rest.

Of a window, the difference of two models is a number: of losses, divergences or agreements.  How
far these spread, and how alike the windows of one cluster are, is assumed; the test is Student's
over clusters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trinity.harness.statistics import clusters
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


@dataclass(frozen=True)
class Prior:
    """What is assumed of the differences of two models over windows of a text.

    deviation: their standard deviation, of windows of `SEQLEN` tokens or more
    alike: how far those of one cluster correlate
    """

    deviation: float
    alike: float = 0.3

    def of(self, seqlen: int) -> float:
        """Standard deviation of shorter windows, as if all their tokens were independent."""
        return self.deviation * math.sqrt(max(1.0, SEQLEN / seqlen))


# Three quarters of pairs of committed rows that are near each other spread less: 0.143 of 156 pairs
# within 1.2x, 0.099 of 41 within 0.4 nats, 0.024 of 70 within 10 points.  Pairs that are further
# apart spread more.  Neighbours among 200 windows of 128 tokens correlated with 0.27.
SEQLEN = 1024
PRIORS = {
    "perplexity": Prior(0.15),  # of losses, in nats a token
    "kl": Prior(0.1),  # nats a token
    "top1_agreement": Prior(0.025),  # share of tokens
}
# Fewer windows make clusters of one window, which guard against nothing but documents.
LEAST_WINDOWS = 16


def resolution_of_windows(prior: Prior, seqlen: int, alike: Sequence[int]) -> float:
    """The least difference of means over windows that one paired test finds POWER of the time.

    seqlen: tokens of a window   alike: the cluster of each window; infinite with less than two
    """
    # Imported here, and not all of scipy.stats: three times faster, for one function.
    from scipy.special import stdtrit

    sizes = np.unique(np.asarray(alike), return_counts=True)[1].astype(np.float64)
    if len(sizes) < 2:
        return math.inf
    variance = float((sizes + prior.alike * sizes * (sizes - 1)).sum() / sizes.sum() ** 2)
    quantiles = float(stdtrit(len(sizes) - 1, [1 - ALPHA / 2, POWER]).sum())
    return quantiles * prior.of(seqlen) * math.sqrt(variance)


def windows_for(wanted: float, prior: Prior, seqlen: int, most: int) -> int | None:
    """The least number of windows that resolves `wanted`, not below LEAST_WINDOWS; None if `most`
    do not.  What is known of documents is not used: clusters are blocks.
    """
    for windows in _sizes(most):
        if resolution_of_windows(prior, seqlen, clusters.blocks(windows)) <= wanted:
            return windows
    return None


def _sizes(most: int) -> Iterator[int]:
    """Numbers of windows in steps of about 2%, at last all of them."""
    windows = min(LEAST_WINDOWS, most)
    while windows < most:
        yield windows
        windows += max(1, windows // 50)
    yield most
