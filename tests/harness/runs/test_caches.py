"""Recipes whose model keeps keys and values as codes."""

from pathlib import Path
from typing import Any

import pytest

from trinity.harness.checkpoints import checkpoint
from trinity.harness.recipes import recipe
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, UnsupportedError


def _run(store: StageStore, **sections: Any) -> Run:
    data: dict[str, Any] = {
        "name": "test",
        "model": {"id": "random:tiny-llama"},
        "evaluate": {"suites": [{"suite": "perplexity-pydoc", "seqlen": 64, "windows": 2}]},
    }
    return Run(recipe.parse({**data, **sections}, "test"), store, Reporter(quiet=True))


def test_a_cache_is_declared_recorded_counted_and_simulated(tmp_path: Path) -> None:
    store, bench = StageStore(tmp_path / "cache"), {"suites": ["memory"], "prompt": 8, "new": 2}
    runs = {
        name: _run(store, compress=compress, bench=bench)
        for name, compress in (
            ("plain", {}),
            ("int4", {"cache": {"method": "rtn-cache"}}),
            ("gear", {"cache": {"method": "gear", "buffer": 8}}),
        )
    }
    made = {name: run.finish() for name, run in runs.items()}
    opened = checkpoint.Checkpoint.open(made["int4"].checkpoint)
    assert opened.cache == runs["int4"].cache
    assert opened.cache is not None
    assert checkpoint.Checkpoint.open(made["plain"].checkpoint).cache is None
    records = {name: of.record for name, of in made.items()}
    assert records["int4"].checkpoint.cache == "rtn-cache: int4 token and head"
    assert "cache" not in records["plain"].checkpoint.model_dump()
    config = opened.config
    heads, width = config.num_key_value_heads, config.head_dim
    row = {"plain": 4 * width, "int4": width // 2 + 4}
    values = {}
    for name, found in records.items():
        accuracy = found.find("perplexity-pydoc", "perplexity")
        size = found.find("cache", "cache_bytes", "torch")
        assert accuracy is not None
        assert size is not None
        assert accuracy.path == ("reference" if name == "plain" else "simulated")
        assert size.details["cache_positions"] == 10
        if name in row:
            assert size.value == 2 * config.num_hidden_layers * 10 * heads * row[name]
        values[name] = accuracy.value
    assert len(set(values.values())) == 3


def test_a_cache_that_no_module_holds_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "cache")
    for cache, target, reason in (
        ({"method": "gear"}, "llvm-cpu", "each position rounded by itself"),
        ({"method": "rtn-cache"}, "vulkan", "as floats only"),
    ):
        with pytest.raises(UnsupportedError, match=rf"^the recipe's compress\.cache: .*{reason}"):
            _run(store, compress={"cache": cache}, lower={"target": target})
    given = {"compress": {"cache": {"method": "rtn-cache"}}, "lower": {"target": "llvm-cpu"}}
    with pytest.raises(UnsupportedError, match="kernels read caches of one sequence, not of 3"):
        _run(store, **given, bench={"suites": ["decode"], "batch": [1, 3]})
    with pytest.raises(ConfigError, match=r"method 'gear' .* name it under `compress\.cache`"):
        _run(store, compress={"steps": [{"method": "gear"}]})


def test_the_same_weights_are_timed_with_a_cache_of_floats(tmp_path: Path) -> None:
    bench = {"suites": ["decode"], "prompt": 8, "new": 2, "repeats": 2, "baseline": "float-cache"}
    store, compress = StageStore(tmp_path / "cache"), {"cache": {"method": "rtn-cache"}}
    found = _run(store, compress=compress, evaluate=None, bench=bench).finish().record
    speedup = found.find("decode", "speedup", "torch")
    assert speedup is not None
    assert speedup.details["baseline_model"].startswith("test, its cache as floats (")
    assert speedup.details["baseline_path"] == "reference"
    with pytest.raises(ConfigError, match=r"keeps keys and values as floats, and bench\.baseline"):
        _run(store, evaluate=None, bench=bench).finish()
