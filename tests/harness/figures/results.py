"""A results folder with all that a figure can show, small enough to check by hand."""

from pathlib import Path
from typing import Any

from tests.harness.records.test_record import make_record
from trinity.harness.records import record
from trinity.harness.records.measurement import Interval, Measurement, SeedSpread

LINEARS = ("mlp.down_proj", "self_attn.q_proj")
BLOCKS = 3


def measured(name: str, metric: str, value: float, **more: Any) -> Measurement:
    """A measurement with an interval of a tenth to each side."""
    given: dict[str, Any] = {
        "unit": "1",
        "higher_is_better": metric not in ("perplexity", "tpot_s", "ttft_s"),
        "path": "kernel",
        "engine": "torch",
        "interval": Interval(low=0.9 * value, high=1.1 * value, method="bootstrap"),
    }
    return Measurement(name=name, metric=metric, value=value, **{**given, **more})


def windows(losses: list[float]) -> Measurement:
    """A perplexity of windows of one text."""
    details = {"windows": len(losses), "corpus": "c", "seqlen": 8}
    seeds = SeedSpread(values=[9.0, 11.0], mean=10.0, deviation=1.4)
    value = 2.0 ** sum(losses)
    return measured(
        "perplexity-c", "perplexity", value, samples=losses, details=details, seeds=seeds
    )


def answers(given: list[int], right: list[float]) -> Measurement:
    """A task: which answer was chosen, and whether it is right."""
    likelihoods = [[-1.0, -3.0] if one == 0 else [-2.5, -2.0] for one in given]
    details = {
        "examples": len(given),
        "answers": given,
        "log_likelihoods": likelihoods,
        "suite": "s",
        "lm_eval_version": "0",
        "num_fewshot": 0,
        "task_version": 1,
    }
    value = sum(right) / len(right)
    return measured("piqa", "acc", value, path="simulated", samples=right, details=details)


def timed(tokens_per_s: float, speedup: float) -> list[Measurement]:
    """Decode and prefill in IREE, with the ceilings of the machine."""
    iree = {"engine": "iree"}
    tpot, prompt = 1 / tokens_per_s, {"floor_s": 0.02, "prompt_tokens": 10}
    return [
        measured("decode", "tokens_per_s", tokens_per_s, unit="tokens/s", **iree),
        measured("decode", "speedup", speedup, details={"verdict": "faster"}, **iree),
        measured(
            "tpot",
            "tpot_s",
            tpot,
            unit="s",
            samples=[tpot, 2 * tpot, tpot],
            **iree,
            details={"floor_s": tpot / 2, "quartile_1": tpot, "quartile_3": 1.5 * tpot},
        ),
        measured("ttft", "ttft_s", 0.04, unit="s", samples=[0.04, 0.05], details=prompt, **iree),
        measured("ceiling-read-2-threads", "read_bytes_per_s", 1e9, unit="bytes/s"),
        measured(
            "ceiling-matmul-float32",
            "matmul_flop_per_s",
            1e10,
            unit="flop/s",
            details={"dtype": "float32"},
        ),
        measured(
            "peak-memory",
            "resident_bytes",
            300.0,
            unit="bytes",
            details={"before_loading_bytes": 100},
            **iree,
        ),
    ]


def one_record(name: str, steps: list[dict[str, Any]], **changes: Any) -> record.Record:
    """A record of a recipe.  changes: bits, error, losses, given, right, speed, date"""
    bits, error = changes.get("bits", 32.0), changes.get("error", 0.0)
    pattern = next((step["pattern"] for step in steps if "pattern" in step), None)
    layers = {
        f"model.layers.{block}.{linear}": {
            "bits_per_weight": bits,
            "relative_error": error * (block + 1),
            "sparsity": 0.5 if pattern else 0.0,
            "format": {"label": "x", "shape": [8, 8], **({"pattern": pattern} if pattern else {})},
        }
        for block in range(BLOCKS)
        for linear in LINEARS
    }
    speed = changes.get("speed", 10.0)
    checkpoint = record.CheckpointInfo(
        fingerprint=name,
        bits_per_weight=bits,
        stored_bytes={"linears": 80, "rest": 20},
        layers=layers,
    )
    measurements = [
        windows(changes.get("losses", [1.0, 1.1, 1.0, 1.2])),
        answers(changes.get("given", [0, 0, 1]), changes.get("right", [1, 1, 0])),
        *timed(speed, speed / 10),
    ]
    return make_record(
        date=changes.get("date", "2026-01-02"),
        recipe={"name": name, "compress": {"steps": steps}, "model": {"id": "m"}},
        checkpoint=checkpoint,
        measurements=measurements,
    )


WANDA = [{"method": "wanda", "pattern": "2:4"}]
RTN = [{"method": "rtn", "bits": 4}]


def write_results(folder: Path) -> Path:
    """Three recipes, two records of the dense one."""
    for made in (
        one_record("dense", [], speed=9.0),
        one_record("dense", [], date="2026-01-03"),
        one_record(
            "wanda-2of4",
            WANDA,
            bits=17.0,
            error=0.1,
            losses=[2.0, 2.2, 2.1, 2.3],
            given=[1, 0, 1],
            right=[0, 1, 0],
            speed=20.0,
        ),
        one_record("rtn", RTN, bits=4.5, error=0.2, losses=[1.5, 1.4, 1.6, 1.5], speed=40.0),
    ):
        record.write(made, folder)
    return folder
