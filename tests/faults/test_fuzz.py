"""Thousands of inputs that are almost right: a value or one clear error, no traceback of another
kind, no hang, no unbounded memory.
"""

from pathlib import Path

import pytest

from tests.faults import fuzz, jobs, processes

# How many of each: what is read fast is read more often.
CASES = dict.fromkeys(fuzz.TARGETS, 200)
CASES |= dict.fromkeys(("record", "attempt", "lowered.json", "rows", "header", "stage"), 500)
CASES |= dict.fromkeys(("config.json", "trinity.json", "gptq", "audit"), 60)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small run leaves."""
    place = tmp_path_factory.mktemp("smoke") / "run"
    jobs.make_data(place / "data")
    processes.whole(place, jobs.smoke, place, jobs.TRAINED)
    return place


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_changed_inputs_end_with_a_value_or_one_clear_error(
    name: str, smoke: Path, tmp_path: Path
) -> None:
    folder, failures = tmp_path / "folder", tmp_path / "failures"
    failures.mkdir()
    fuzz.make(fuzz.TARGETS[name].of, folder, smoke)
    count = CASES[name] * processes.TIMES
    seeds = range(processes.SEED * count, (processes.SEED + 1) * count)
    said = tmp_path / "said.txt"
    code = processes.done(said, fuzz.campaign, name, folder, seeds, failures, seconds=600)
    last = (failures / "now").read_text(encoding="utf-8")
    assert code == 0, f"seed {last}: ended by {code}: {said.read_text(encoding='utf-8')}"
    found = sorted(path for path in failures.iterdir() if path.name.isdigit())
    text = "\n".join(path.read_text(encoding="utf-8") for path in found[:3])
    assert not found, f"{len(found)} of {count}, seeds {[p.name for p in found[:20]]}:\n{text}"
