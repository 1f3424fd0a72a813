"""A tiny bundle, built here and run as on a machine that has no compiler and none of our packages.

On a Vulkan device where there is one, else on the processor; `cuda` has no device, and is rows.
"""

import gzip
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import build
from benchmarks.gpu.profiles import PROFILES
from trinity.harness.records import record
from trinity.harness.tracking import queries
from trinity.lowering.module import devices
from trinity.lowering.module.check import linears_text
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.random_weights import random_weight
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.formats import WeightFormat

TARGET = "vulkan" if devices.available(targets.get("vulkan")) else "llvm-cpu"
MISSING = not devices.available(targets.get("cuda"))
# What a bare machine lacks; the program must not even ask for it.
ALIEN = (
    "pydantic",
    "transformers",
    "safetensors",
    "psutil",
    "scipy",
    "iree.compiler",
    "torch_mlir",
)
GUARD = f"""
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({ALIEN!r}) or name.startswith("trinity.harness"):
            raise ModuleNotFoundError(f"a bare machine has no {{name}}")

sys.meta_path.insert(0, Guard())
"""


def cases(bundle: Path, **wanted: Any) -> list[dict[str, Any]]:
    found = json.loads((bundle / "bundle.json").read_text("utf-8"))["cases"]
    return [of for of in found if all(of.get(key) == value for key, value in wanted.items())]


def plant_a_wrong_kernel(bundle: Path, case: dict[str, Any]) -> None:
    """A module whose products are twice what they should be."""
    target, weight_format = targets.get(TARGET), WeightFormat.from_json(case["format"])
    text = linears_text(weight_format, target, PROFILES["tiny"].check_rows)
    wrong = r"    %twice = arith.addf \1, \1 : \2\n    return %twice : \2"
    text, count = re.subn(r"^ *return (%\S+) : (tensor<.*>)$", wrong, text, flags=re.MULTILINE)
    assert count == len(PROFILES["tiny"].check_rows)
    (bundle / case["module"]).write_bytes(gzip.compress(compile_text(text, target)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], str]:
    """The folder of results, rows by name and metric, and what was printed."""
    folder = tmp_path_factory.mktemp("bundle")
    bundle = build.Bundle(folder / "there", PROFILES["tiny"])
    bundle.add(TARGET)
    bundle.profile = replace(bundle.profile, models=())
    bundle.add("cuda")
    bundle.finish()
    first, second = cases(folder / "there", target=TARGET, kind="check")
    plant_a_wrong_kernel(folder / "there", second)
    (folder / "there" / first["module"]).write_bytes(gzip.compress(b"no module"))
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD, "utf-8")
    done = subprocess.run(
        [sys.executable, "there/first_day.pyz", "--repeats", "2", "--rotate", "1"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder / "guard"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # rows failed
    lines = (folder / "first-day-results" / "rows.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line)["row"] for line in lines]
    return (
        folder / "first-day-results",
        {f"{row['name']}, {row['engine']} {row['metric']}": row for row in rows},
        done.stdout,
    )


def reason(rows: dict[str, dict[str, Any]], name: str, *, metric: str = "relative_error") -> str:
    (found,) = (
        of["reason"] for key, of in rows.items() if re.fullmatch(f"{name}, .* {metric}", key)
    )
    return str(found)


Ran = tuple[Path, dict[str, dict[str, Any]], str]


def test_a_wrong_kernel_is_a_row_that_says_how_wrong(ran: Ran) -> None:
    name = f"check 64x128 2:4 int4 channel, 2 rows, float32, {TARGET}"
    found = re.fullmatch(
        r"wrong: (\S+) of the largest output from float64, where .*", reason(ran[1], name)
    )
    assert found
    assert float(found[1]) == pytest.approx(1, rel=0.1)  # twice the product


def test_a_module_that_does_not_load_is_a_row_and_what_follows_runs(ran: Ran) -> None:
    name = f"check 64x128 int4 channel, 2 rows, float32, {TARGET}"
    assert reason(ran[1], name).startswith("LoweringError: target ")
    assert reason(ran[1], "layer 64x128 int4 channel, 1 rows", metric="speedup") == "None"


def test_values_of_tables_and_outliers_are_checked_in_kernels_of_every_gpu_target() -> None:
    formats = [
        of
        for of in PROFILES["full"].check_formats()
        if (of.codebook or of.row_codebook or of.outliers) and not of.nested
    ]
    assert {of.label for of in formats} >= {"nf4 group 64", "16 levels channel + 8 outliers"}
    for weight_format in formats:
        for target in ("cuda", "rocm", "vulkan"):
            assert storage_of(weight_format, targets.get(target)).path == "kernel"
        if weight_format.row_codebook:
            assert random_weight(weight_format).shape == weight_format.shape


@pytest.mark.skipif(not MISSING, reason="this machine has an NVIDIA GPU")
def test_a_device_that_is_not_there_is_a_row_for_each_of_its_cases(ran: Ran) -> None:
    assert "no NVIDIA GPU" in reason(ran[1], "device cuda", metric="devices")
    lost = [of for key, of in ran[1].items() if key.startswith(("kernel", "copy")) or "cuda" in key]
    assert len(lost) == 1 + 4 + 2  # probe, checks, kernels alone; the layer has the same name here
    assert all("no NVIDIA GPU" in of["reason"] for of in lost)


def test_a_small_model_decodes_as_torch_does_without_the_packages_that_made_it(ran: Ran) -> None:
    name = f"decode int4, float32, {TARGET}"
    errors = [ran[1][f"{name} {part}, iree logit_error"] for part in ("prefill", "decode")]
    assert all(0 <= of["value"] < of["details"]["allowed"] for of in errors)
    speed = ran[1][f"{name}, iree tokens_per_s"]
    assert speed["value"] > 0
    assert len(speed["samples"]) == 2
    assert speed["details"]["gpu_sampled"] or speed["details"]["gpu_samples"] >= 0


def test_records_hold_every_row_and_answer_questions_in_sql(ran: Ran) -> None:
    folder, _, printed = ran
    found = record.read_all(folder)
    assert {of.recipe["name"] for of in found} == {
        f"products-{TARGET}",
        "products-cuda",
        f"decode-{TARGET}-float32-int4",
    }
    assert all(m.reason for of in found for m in of.measurements if m.value is None)
    names, lines = queries.ask("select count(*) from measurements where reason is not null", folder)
    assert (names, lines) == (["count_star()"], [(printed.count("FAILED "),)])
    decoded = next(of for of in found if of.lowering)
    assert decoded.lowering
    assert set(decoded.lowering.logit_errors) == {"prefill", "decode"}
    assert decoded.lowering.compile_s > 0
