from pathlib import Path
from typing import Any

import pytest

from trinity.harness.recipes import recipe
from trinity.harness.records import available
from trinity.harness.store.stages import StageStore
from trinity.harness.sweeps import graph, plan
from trinity.harness.sweeps.graph import Part
from trinity.harness.sweeps.plan import Cost, Plan
from trinity.harness.sweeps.view import View
from trinity.harness.sweeps.worker import Failure, Outcome
from trinity.harness.terminal.progress import Reporter

SUITE = {"suite": "perplexity-pydoc", "seqlen": 64, "windows": 2}


def _plan(seconds: dict[str, tuple[float, str]], *, alone: str = "") -> Plan:
    """Parts by one letter, with seconds and the letters of what each needs."""
    parts, costs = {}, {}
    for key, (took, needs) in seconds.items():
        named = recipe.parse({"name": key, "model": {"id": "m"}}, "test")
        kind = "bench" if key in alone else "compress"
        parts[key] = Part(key, kind, named, frozenset(needs), ("run",))
        costs[key] = Cost(took, 10**9, 0)
    return Plan(parts, costs, {})


def test_a_sweep_takes_as_long_as_its_longest_chain_or_its_work_over_the_slots() -> None:
    chain = _plan({"a": (5, ""), "b": (5, "a"), "c": (1, "")})
    assert chain.seconds(2) == 10
    assert chain.seconds(1) == 11
    assert _plan({k: (1, "") for k in "abcd"}).seconds(2) == 2


def test_what_runs_alone_is_not_divided_among_slots() -> None:
    assert _plan({"a": (4, ""), "t": (6, "")}, alone="t").seconds(2) == 8


def test_where_a_gpu_works_no_time_is_told() -> None:
    found = Plan(_plan({"a": (1, "")}).graph, {"a": Cost(None, 10**9, 0)}, {})
    assert found.seconds(1) is None
    assert "not known" in found.grid(1).notes[0]
    assert found.data(1)["parts"][0]["seconds"] is None


def _of(store: Path, **changes: Any) -> Plan:
    data = {
        "name": "a",
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": [{"method": "wanda", "pattern": "2:4"}]},
        "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 64, "rule": "concatenated"},
        "evaluate": {"suites": [SUITE]},
        **changes,
    }
    runs = [recipe.parse(data, "test")]
    stages = StageStore(store / "store")
    return plan.of_graph(graph.of_runs(runs), store / "out", stages, Reporter(quiet=True))


def test_every_part_has_its_time_and_memory_and_a_row(tmp_path: Path) -> None:
    found = _of(tmp_path, lower={"target": "llvm-cpu", "context": 64})
    assert not found.refused
    assert set(found.costs) == set(found.graph)
    assert all(cost.seconds and cost.memory > 10**8 for cost in found.costs.values())
    of_kind = {part.kind: found.costs[key] for key, part in found.graph.items()}
    assert of_kind["compress"].disk > 0
    assert of_kind["lower"].disk > 0
    assert of_kind["evaluate"].disk == 0
    grid = found.grid(2)
    assert [row[0] for row in grid.rows] == [part.kind for part in found.graph.values()]
    assert grid.notes[0].startswith("1 runs in 4 parts, 2 at once: at least ")
    assert not any((tmp_path / "store").glob("block/*"))


def test_a_part_that_memory_cannot_hold_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available, "total_bytes", lambda: 10**6)
    found = _of(tmp_path)
    kinds = {found.graph[key].kind for key in found.refused}
    assert kinds == {"compress"}
    assert any("compress a on random:tiny-llama" in note for note in found.grid(1).notes)


def test_the_view_says_what_ended_and_what_failed_and_learns_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = _plan({"a": (10, ""), "b": (10, ""), "c": (10, "")})
    with Reporter() as reporter:
        view = View(found, 1, reporter)
        view.ended(found.graph["a"], Outcome(20.0, said=("a line of its own",)))
        assert view._left() == 40.0
        view.ended(found.graph["b"], Outcome(0.0, failure=Failure("it broke", trace="line 3")))
    said = capsys.readouterr().err
    assert "1 of 3: compress a on m, 20.0 s" in said
    assert "a line of its own" in said
    assert "compress b on m failed: it broke" in said
    assert "line 3" in said
