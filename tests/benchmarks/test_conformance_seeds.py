"""`benchmarks/conformance/seeds.py` says of several calibration seeds if a ratio is a shift."""

from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "conformance"


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which imports those beside it by their bare names, as it does where it runs."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import seeds

    return seeds


def test_the_ratio_has_students_interval_over_seeds(seeds: ModuleType) -> None:
    # Logs of the ratios: 0.01, 0.03, 0.05; deviation 0.02; t(2, 97.5%) = 4.302653 (any table).
    ours = [100 * 2.718281828459045**log for log in (0.01, 0.03, 0.05)]
    found = seeds.mean_log_ratio(ours, [100.0, 100.0, 100.0])
    half = 4.302653 * 0.02 / 3**0.5
    assert found["ratio"] == pytest.approx(2.718281828459045**0.03)
    expected = [2.718281828459045 ** (0.03 + side * half) for side in (-1, 1)]
    assert found["interval"] == pytest.approx(expected, rel=1e-6)
    # With two degrees of freedom, the two-sided p-value of t is 1 - t / sqrt(t^2 + 2).
    t = 0.03 / (0.02 / 3**0.5)
    assert found["p_value"] == pytest.approx(1 - t / (t**2 + 2) ** 0.5, rel=1e-6)


def test_models_that_are_equal_on_every_seed_have_no_shift(seeds: ModuleType) -> None:
    found = seeds.mean_log_ratio([10.0, 20.0, 15.0], [10.0, 20.0, 15.0])
    assert (found["ratio"], found["interval"], found["p_value"]) == (1, [1, 1], 1)


def test_the_table_has_a_row_a_seed_and_one_of_all(seeds: ModuleType) -> None:
    def one(seed: int, ours: float, theirs: float) -> dict[str, object]:
        rows = {"ours": ours, "theirs": theirs}
        return {"seed": seed, **{who: [{"name": "p", "value": v}] for who, v in rows.items()}}

    found = [one(0, 11, 10), one(1, 12, 10)]
    said = seeds.table({"seeds": found, "outcomes": {"these seeds": seeds.together(found)}})
    assert said.splitlines()[2] == "| 0 | p | 10.0 | 11.0 | 1.100 |"
    assert said.splitlines()[3] == "| 1 | p | 10.0 | 12.0 | 1.200 |"
    assert said.splitlines()[4].startswith("| these seeds | p | | | 1.149 [")
