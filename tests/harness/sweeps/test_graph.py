from typing import Any

from trinity.harness.recipes import recipe
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.sweeps import graph
from trinity.harness.sweeps.graph import Graph, Part

SUITE = {"suite": "perplexity-pydoc", "seqlen": 64, "windows": 2}
FIDELITY = {"suite": "fidelity-pydoc", "seqlen": 64, "windows": 2}
TEXT = {"dataset": "pydoc", "samples": 2, "seqlen": 64}
WANDA = {"steps": [{"method": "wanda", "pattern": "2:4"}]}


def _run(name: str, **changes: Any) -> Recipe:
    data = {"name": name, "model": {"id": "random:tiny-llama"}, **changes}
    return recipe.parse(data, "test")


def _kinds(found: Graph) -> list[str]:
    return [part.kind for part in found.values()]


def _of(found: Graph, kind: str) -> list[Part]:
    return [part for part in found.values() if part.kind == kind]


def test_no_part_comes_before_what_it_needs() -> None:
    runs = [
        _run(
            name,
            compress=WANDA,
            calibration={**TEXT, "seed": seed},
            lower={"target": "llvm-cpu"},
            evaluate={"suites": [SUITE, FIDELITY], "engine": "iree"},
            bench={"suites": ["decode"], "baseline": "dense"},
        )
        for seed, name in enumerate(("one", "two"))
    ]
    seen: set[str] = set()
    for key, part in graph.of_runs(runs).items():
        assert part.needs <= seen
        seen.add(key)


def test_one_dense_model_serves_every_seed_and_method() -> None:
    runs = [_run("dense", evaluate={"suites": [SUITE]})]
    runs += [
        _run(
            f"{method}-{seed}",
            compress={"steps": [{"method": method}]},
            calibration={**TEXT, "seed": seed},
            evaluate={"suites": [FIDELITY]},
        )
        for method in ("wanda", "rtn")
        for seed in (0, 1)
    ]
    found = graph.of_runs(runs)
    assert _kinds(found).count("compress") == 5
    dense = next(part for part in _of(found, "compress") if graph.is_dense(part.recipe))
    assert len(dense.runs) == 5
    assert all(dense.key in part.needs for part in _of(found, "evaluate"))


def test_runs_that_differ_in_what_is_measured_share_their_checkpoint() -> None:
    same: dict[str, Any] = {"compress": WANDA, "calibration": TEXT}
    found = graph.of_runs([_run("a", **same, evaluate={"suites": [SUITE]}), _run("b", **same)])
    assert _kinds(found).count("compress") == 1
    assert _kinds(found).count("record") == 2


def test_what_is_asked_of_the_dense_model_for_comparisons_is_asked_once() -> None:
    flips = {"suite": "flips-knowledge", "limit": 4}
    text: dict[str, Any] = {"calibration": TEXT, "evaluate": {"suites": [flips]}}
    found = graph.of_runs(
        [_run(m, compress={"steps": [{"method": m}]}, **text) for m in ("wanda", "rtn")]
    )
    dense = [part for part in _of(found, "evaluate") if graph.is_dense(part.recipe)]
    assert len(dense) == 1
    assert len(dense[0].runs) == 2
    others = [part for part in _of(found, "evaluate") if part not in dense]
    assert all(dense[0].key in part.needs for part in others)


def test_times_are_taken_alone_with_every_module_compiled_before() -> None:
    lowered = {
        "lower": {"target": "llvm-cpu"},
        "bench": {"suites": ["decode"], "baseline": "dense"},
    }
    found = graph.of_runs([_run("a", compress=WANDA, calibration=TEXT, **lowered)])
    (bench,) = [part for part in found.values() if part.is_alone]
    assert bench.kind == "bench"
    assert {part.key for part in _of(found, "lower")} < bench.needs
    assert len(_of(found, "lower")) == 2


def test_every_seed_within_a_recipe_is_compressed_and_evaluated_for_one_record() -> None:
    text = {**TEXT, "seeds": [0, 1, 2]}
    run = _run("a", compress=WANDA, calibration=text, evaluate={"suites": [SUITE]})
    found = graph.of_runs([run])
    assert sorted(_kinds(found)) == ["compress"] * 3 + ["evaluate"] * 3 + ["record"]
    (record,) = _of(found, "record")
    assert record.recipe == run
    assert set(record.needs) == set(found) - {record.key}
