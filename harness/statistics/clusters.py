"""Windows of one text that are alike, put together: a test resamples clusters, not windows.

Neighbours in a text share its topic, and a method that is worse on a topic is worse in all of them.
A cluster is a run of neighbours: it holds whole documents, and at least sqrt(n) / 2 of n windows,
because short documents beside each other are alike too.  Where fewer than five documents count, it
is a block of that many windows instead, which guards less.  So 16 windows make eight clusters or
fewer, and fewer than 16 windows are put together by documents only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEAST = 5.0  # clusters that count, where they are unequal: with fewer the test errs too often


def of_windows(lengths: Iterable[int], seqlen: int, windows: int) -> tuple[list[int], str]:
    """The cluster of each of the first windows of a text, counted from 0, and what clusters are.

    lengths: tokens of each document, in order   windows: how many, of `seqlen` tokens

    A window is of the document that holds its middle.
    """
    least = _least(windows)
    said = f"at least {least} window{'s' * (least > 1)}"
    by_document = _runs(_middles(lengths, seqlen, windows), least)
    if _counted(np.bincount(by_document)) >= _LEAST:
        return by_document, f"documents, {said}"
    return blocks(windows), f"blocks, {said}"


def blocks(windows: int) -> list[int]:
    """The cluster of each window where nothing is known of documents.  -> [windows], from 0"""
    return _runs(range(windows), _least(windows))


def _least(windows: int) -> int:
    return max(1, math.isqrt(windows) // 2)


def _runs(documents: Sequence[int], least: int) -> list[int]:
    """The number of each window's run, which ends where a document does and has `least` windows."""
    starts, windows = [0], len(documents)
    for window in range(1, windows):
        if documents[window] != documents[window - 1] and window - starts[-1] >= least:
            starts.append(window)
    if len(starts) > 1 and windows - starts[-1] < least:
        starts.pop()
    ends = [*starts[1:], windows]
    return [k for k, (a, b) in enumerate(zip(starts, ends, strict=True)) for _ in range(a, b)]


def _counted(sizes: NDArray[Any]) -> float:
    """Kish's number of clusters that count: equal ones count all, beside a large one small ones
    hardly do.  sizes: [clusters]
    """
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def _middles(lengths: Iterable[int], seqlen: int, windows: int) -> list[int]:
    """The document of the middle token of each window; the last one where tokens are lacking."""
    found: list[int] = []
    document, end = 0, 0
    for document, length in enumerate(lengths):
        end += length
        while len(found) < windows and len(found) * seqlen + seqlen // 2 < end:
            found.append(document)
        if len(found) == windows:
            break
    return found + [document] * (windows - len(found))


@dataclass(frozen=True, eq=False)
class Clustered:
    """Paired differences, summed by cluster.

    sums: [clusters]   sizes: [clusters], how many differences each holds
    """

    sums: Floats
    sizes: Floats

    @classmethod
    def of(cls, differences: Floats, clusters: Sequence[int] | None) -> "Clustered":
        """clusters: of each difference; None if each is one of its own"""
        if clusters is None:
            return cls(differences, np.ones(len(differences)))
        _, number = np.unique(np.asarray(clusters), return_inverse=True)
        sums, sizes = np.bincount(number, differences), np.bincount(number)
        return cls(sums.astype(np.float64), sizes.astype(np.float64))

    def __len__(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float:
        """Of the differences, which all weigh the same."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def error(self) -> float:
        """Standard error of the mean, clusters being independent; of one cluster, infinite."""
        return float(errors(self.sums, self.sizes)) if len(self) > 1 else math.inf

    @property
    def lopsided(self) -> bool:
        """Whether one cluster outweighs the others so far that resampling says too much."""
        return _counted(self.sizes) < _LEAST and self.sizes.min() < self.sizes.max()

    @property
    def least_p_value(self) -> float:
        """Below which no outcome lies: a resample that is one cluster repeated has no spread."""
        n = len(self)
        return 1.0 if self.lopsided else float(n) ** (1 - n)


def errors(sums: Floats, sizes: Floats) -> Floats:
    """Standard error of the mean of sums.sum() / sizes.sum(), along the last axis.

    sums, sizes: [..., clusters]  ->  [...]
    """
    n = sums.shape[-1]
    total = sizes.sum(axis=-1)
    mean = sums.sum(axis=-1) / total
    squares = np.square(sums - mean[..., None] * sizes).sum(axis=-1)
    error: Floats = np.sqrt(squares * n / (n - 1)) / total
    return error
