"""What a recipe may ask its suites to resolve: a difference in the unit of what is measured.

'4 points' of accuracy or agreement, '1.05x' of perplexity, '0.1 nats' of divergence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

POINTS, RATIO, NATS = "points", "ratio", "nats"

_WRITTEN = {
    POINTS: r"(\d+(?:\.\d+)?) points?",
    RATIO: r"(\d+(?:\.\d+)?)x",
    NATS: r"(\d+(?:\.\d+)?) nats?",
}


@dataclass(frozen=True)
class Wanted:
    """A difference to be shown.

    text: as it was written   value: a share of points, a ratio of perplexities, nats
    """

    text: str
    value: float


def read(text: str) -> tuple[str, Wanted]:
    """Unit and difference of '4 points', '1.05x' or '0.1 nats'; ValueError for anything else."""
    for unit, written in _WRITTEN.items():
        found = re.fullmatch(written, text)
        if not found:
            continue
        value = float(found[1]) / (100 if unit == POINTS else 1)
        if (value > 1) if unit == RATIO else (0 < value <= 1 or (unit == NATS and value > 0)):
            return unit, Wanted(text, value)
    msg = (
        f"'{text}' is no resolution: write a difference of accuracies such as '4 points', a ratio "
        f"of perplexities above 1 such as '1.05x', or a difference of divergences such as "
        f"'0.1 nats'"
    )
    raise ValueError(msg)


def _is_one(text: str) -> str:
    read(text)
    return text


def _each_unit_once(texts: tuple[str, ...]) -> tuple[str, ...]:
    units = [read(text)[0] for text in texts]
    twice = next((unit for unit in units if units.count(unit) > 1), None)
    if twice or not texts:
        msg = f"names two differences in {twice}" if twice else "names no difference"
        raise ValueError(msg)
    return texts


Resolution = Annotated[str, AfterValidator(_is_one)]
Resolutions = Resolution | Annotated[tuple[Resolution, ...], AfterValidator(_each_unit_once)]


def wanted(resolve: str | tuple[str, ...] | None) -> Mapping[str, Wanted]:
    """What a recipe asks for, by unit: POINTS, RATIO, NATS."""
    texts = (resolve,) if isinstance(resolve, str) else resolve or ()
    return dict(map(read, texts))
