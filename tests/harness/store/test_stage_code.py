"""A stage is made by the code that its key knows: a traced run steps outside of it nowhere."""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from trinity.harness.recipes import recipe
from trinity.harness.runs.run import Run
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter

TEXT = {"dataset": "pydoc", "samples": 2, "seqlen": 32, "rule": "concatenated"}
PERPLEXITY = {"suite": "perplexity-pydoc", "seqlen": 32, "windows": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "torch": {
        "model": {"id": "random:tiny-llama"},
        "compress": {
            "steps": [{"method": "wanda", "pattern": "2:4"}],
            "tune": {"method": "slim-tune", "epochs": 1, "batch": 2},
        },
        "calibration": TEXT,
        "evaluate": {
            "suites": [
                PERPLEXITY,
                {"suite": "pydoc-last-word", "limit": 2},
                {"suite": "fidelity-pydoc", "seqlen": 32, "windows": 1},
            ]
        },
    },
    "by-block": {
        "model": {"id": "random:tiny-llama"},
        "compress": {
            "steps": [{"method": "magnitude", "pattern": "2:4"}],
            "tune": {"method": "beam", "epochs": 1, "trial": 1, "mode": "online"},
        },
        "calibration": TEXT,
    },
    "trained": {
        "model": {
            "id": "trained:tiny-llama",
            "training": {"steps": 2, "batch": 1, "seqlen": 32, "pattern": "2:4"},
        },
        "compress": {"steps": [{"method": "slope"}]},
    },
    "bench": {
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": [{"method": "magnitude", "pattern": "2:4"}]},
        "bench": {
            "suites": ["decode", "prefill", "compress"],
            "prompt": 4,
            "new": 2,
            "repeats": 3,
            "baseline": "dense",
        },
    },
    "compiled": {
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": [{"method": "magnitude", "pattern": "2:4"}]},
        "lower": {"target": "llvm-cpu", "length": 8, "context": 32},
        "evaluate": {"suites": [PERPLEXITY], "engine": "iree"},
    },
}
# What runs around every stage, and does nothing to what it holds.
AROUND = {"trinity.harness.terminal.progress"}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, set[str], set[str]]]]:
    """(kind, modules that ran, modules that the key knows) of every stage that is made."""
    closures: dict[str, frozenset[str]] = {}
    found: list[tuple[str, set[str], set[str]]] = []
    open_stages: list[set[str]] = []
    original_hash, original_make = own_code.sha256, StageStore._make

    def sha256(*code: object, methods: Any = (), parts: Any = ()) -> str:
        key = original_hash(*code, methods=methods, parts=parts)
        modules = {own_code.module_of(thing) for thing in (*code, *(part for part, _ in parts))}
        modules |= {str(type(method).__module__) for method in methods}
        closures[key] = own_code.own_tree().closure(frozenset(modules))
        return key

    def trace(frame: FrameType, event: str, _: object) -> None:
        name = str(frame.f_globals.get("__name__", ""))
        # Code of classes and modules runs when something is imported, not to fill a stage.
        ours = event == "call" and bool(open_stages) and name.startswith("trinity.")
        if ours and not _is_body(frame):
            open_stages[-1].add(name)

    def make(self: StageStore, kind: str, inputs: Any, write: Callable, place: Path) -> None:
        def watched(folder: Path) -> None:
            open_stages.append(set())
            sys.setprofile(trace)
            try:
                write(folder)
            finally:
                ran = open_stages.pop()
                sys.setprofile(trace if open_stages else None)
                found.append((kind, ran, set(closures[inputs["code"]])))

        original_make(self, kind, inputs, watched, place)

    monkeypatch.setattr(own_code, "sha256", sha256)
    monkeypatch.setattr(StageStore, "_make", make)
    yield found
    sys.setprofile(None)


def _is_body(frame: FrameType) -> bool:
    """Of a module or a class."""
    return not frame.f_code.co_flags & inspect.CO_NEWLOCALS


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("torch", ["model", "calibration", "block", "tuned", "checkpoint", "suite", "record"]),
        ("by-block", ["block", "tuned-block", "checkpoint"]),
        ("trained", ["model", "trained", "imported", "record"]),
        ("bench", ["block", "checkpoint", "bench", "record"]),
        pytest.param("compiled", ["module", "parameters", "verification"], marks=pytest.mark.slow),
    ],
)
def test_no_stage_runs_code_that_its_key_does_not_know(
    name: str,
    kinds: list[str],
    traced: list[tuple[str, set[str], set[str]]],
    tmp_path: Path,
) -> None:
    read = recipe.parse({"name": name, **RECIPES[name]}, "test")
    Run(read, StageStore(tmp_path / "cache"), Reporter(quiet=True)).finish()
    outside = {(kind, module) for kind, ran, known in traced for module in ran - known - AROUND}
    assert outside == set()
    assert set(kinds) <= {kind for kind, _, _ in traced}
