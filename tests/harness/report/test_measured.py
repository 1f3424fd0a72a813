"""Measurements are read in units that people use, with the digits that mean something."""

from typing import Any

import pytest

from trinity.harness.records.measurement import Interval, Measurement
from trinity.harness.report.measured import grids
from trinity.harness.report.numbers import interval_text, significant, value_text


def _measured(metric: str, unit: str, value: float | None, **more: Any) -> Measurement:
    given: dict[str, Any] = {"name": "x", "higher_is_better": True, "path": "kernel"}
    given |= {"engine": "iree", "metric": metric, "unit": unit, "value": value}
    return Measurement.model_validate(given | more)


@pytest.mark.parametrize(
    ("metric", "unit", "value", "text"),
    [
        ("ttft_s", "s", 0.001978353, "1.978 ms"),
        ("tpot_s", "s", 0.0009346, "934.6 µs"),
        ("seconds", "s", 312.04, "312.0 s"),
        ("tokens_per_s", "tokens/s", 14266.2, "14,266 tokens/s"),
        ("stored_bytes", "bytes", 334392, "326.6 KiB"),
        ("resident_bytes", "bytes", 419397632, "400.0 MiB"),
        ("read_bytes_per_s", "bytes/s", 4670749332.0, "4.671 GB/s"),
        ("matmul_flop_per_s", "flop/s", 60339979754.0, "60.34 GFLOP/s"),
        ("bits_per_weight", "bits", 5.3642, "5.364 bits/weight"),
        ("speedup", "1", 5.288794, "5.289x"),
        ("acc", "1", 0.54, "54.0 %"),
        ("perplexity", "1", 204417.3, "204,417"),
        ("perplexity", "1", 28.5312, "28.53"),
        ("perplexity", "1", None, "–"),
    ],
)
def test_a_value_has_a_unit_and_four_digits(
    metric: str, unit: str, value: float | None, text: str
) -> None:
    assert value_text(_measured(metric, unit, value)) == text


def test_an_interval_is_in_the_unit_and_to_the_decimal_of_its_value() -> None:
    between = Interval(low=0.0009004, high=0.0011769, method="m")
    assert (
        interval_text(_measured("tpot_s", "s", 0.0009346, interval=between)) == "[900.4, 1,176.9]"
    )


@pytest.mark.parametrize("value", [0.0, 1e-12, 3.0e-5, 0.099996, 9.9996, 12345678.9])
def test_no_number_gets_an_exponent(value: float) -> None:
    assert "e" not in significant(value)
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=1e-3, abs=1e-9)


def test_ceilings_and_speedups_stand_apart_and_say_what_they_are_against() -> None:
    against = {"baseline_model": "dense (1da36d742f48)", "baseline_engine": "iree"}
    against |= {"baseline_path": "kernel", "verdict": "faster"}
    found = [
        _measured("tokens_per_s", "tokens/s", 200.0, name="decode"),
        _measured("speedup", "1", 2.0, name="decode", details=against),
        _measured("read_bytes_per_s", "bytes/s", 4.7e9, name="ceiling-read-1-threads"),
        _measured("resident_bytes", "bytes", None, name="peak-memory", reason="no memory"),
    ]
    made = {grid.columns[0].name: grid for grid in grids(found)}
    assert list(made) == ["speed", "speed-up", "size", "ceiling of this machine"]
    assert list(made["speed-up"].rows[0])[-2:] == ["dense in iree (kernel)", "faster"]
    assert made["size"].notes == ["peak-memory (iree): not measured: no memory"]
    assert [row[0] for row in made["ceiling of this machine"].rows] == ["read-1-threads"]


def test_a_product_is_against_the_same_product() -> None:
    details = {"baseline_model": "the same product, dense float32", "baseline_engine": "torch"}
    details["baseline_path"] = "reference"
    (made,) = grids([_measured("speedup", "1", 2.0, name="layer 8x8", details=details)])
    assert "the same product, dense float32 in torch (reference)" in made.rows[0]


def test_every_measurement_is_in_one_table() -> None:
    kinds = [("acc", "1"), ("perplexity", "1"), ("kl", "nats"), ("seconds", "s"), ("odd", "1")]
    found = [_measured(metric, unit, 0.5, name=metric) for metric, unit in kinds]
    assert sum(len(grid.rows) for grid in grids(found)) == len(found)
