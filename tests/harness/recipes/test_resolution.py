"""harness/recipes/resolution.py: differences as they are written."""

import pytest

from trinity.harness.recipes import resolution
from trinity.harness.recipes.resolution import NATS, POINTS, RATIO, Wanted


def test_each_unit_is_read_as_what_is_measured_in_it() -> None:
    found = resolution.wanted(("1.5 points", "1.05x", "2.5 nats"))
    assert found == {
        POINTS: Wanted("1.5 points", 0.015),
        RATIO: Wanted("1.05x", 1.05),
        NATS: Wanted("2.5 nats", 2.5),
    }
    assert resolution.wanted("1 point") == {POINTS: Wanted("1 point", 0.01)}
    assert resolution.wanted(None) == {}


@pytest.mark.parametrize("text", ["5%", "x", "1.0x", "1,05x", "0.1", "nats"])
def test_what_has_no_unit_or_shows_nothing_is_refused_with_what_may_stand(text: str) -> None:
    with pytest.raises(ValueError, match=r"'4 points'.*'1\.05x'.*'0\.1 nats'"):
        resolution.read(text)
