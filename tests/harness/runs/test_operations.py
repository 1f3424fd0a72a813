"""harness/runs/operations.py against what torch counts while a run works."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import large_model
from trinity.harness.accuracy import suites
from trinity.harness.recipes import recipe
from trinity.harness.records import products
from trinity.harness.runs import estimate, operations
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter

BLOCKS, SEQLEN = 3, 48


def _attention(query: Any, key: Any, *_: object, **__: object) -> int:
    """query, key: shapes, [batch, heads, positions, head_dim]; torch counts none on a CPU"""
    batch, heads, positions, width = query
    return int(4 * batch * heads * positions * key[-2] * width)


def _counted(call: Callable[[], object]) -> float:
    aten = torch.ops.aten
    own = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        call()
    return float(counter.get_total_flops())


def _run(folder: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> Run:
    monkeypatch.setattr(products, "library", lambda: "torch's own")  # of oneDNN nothing is counted
    config = large_model.sized(blocks=BLOCKS, hidden=256, inner=640, vocabulary=512)
    large_model.make(folder / "model", config)
    data = {"name": "r", "model": {"id": str(folder / "model")}, **sections}
    return Run(recipe.parse(data, "test"), StageStore(folder / "store"), Reporter(quiet=True))


@pytest.mark.parametrize("order", ["block", "true-sequential"])
def test_what_compression_multiplies_is_counted(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"method": "wanda", "pattern": "2:4"}]  # which multiplies nothing itself
    text = {"dataset": "pydoc", "samples": 2, "seqlen": SEQLEN}
    run = _run(tmp_path, monkeypatch, compress={"steps": steps, "order": order}, calibration=text)
    run.draw_calibration()
    counted = _counted(run.compress)
    size, drawn = estimate.size_of(run.source.path), run.recipe.calibration
    assert drawn is not None
    planned = operations.calibrated(size.groups, BLOCKS, size.attention, drawn, order)
    planned += operations.squared(size.groups, BLOCKS, 2 * SEQLEN)
    planned += operations.reported(size.groups, BLOCKS)
    assert counted == pytest.approx(planned, rel=1e-3)  # rotary angles are products too


def test_what_reading_a_text_multiplies_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"suites": [{"suite": "perplexity-pydoc", "seqlen": SEQLEN, "windows": 3}]}
    run = _run(tmp_path, monkeypatch, evaluate=asked)
    run.compress()
    spec = run.recipe.evaluate
    assert spec is not None
    counted = _counted(lambda: run.make_measuring().evaluate(spec))
    size = estimate.size_of(run.source.path)
    read = operations.read_by([suites.resolve(suite) for suite in spec.suites])
    assert read == operations.Read(3 * SEQLEN, 3 * SEQLEN**2)
    planned = operations.forwards(size.weights, BLOCKS * size.attention, read)
    assert counted == pytest.approx(planned, rel=2e-3)  # norms have weights, and no products
