import csv
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.harness.figures.results import one_record, write_results
from trinity.harness.artifact import artifact, expected, licences
from trinity.harness.figures.shown import shown
from trinity.harness.recipes.recipe import (
    CompressSpec,
    EvaluateSpec,
    ModelSpec,
    Recipe,
    Step,
    SuiteSpec,
)
from trinity.harness.records import record
from trinity.harness.runs.attempts import FOLDER, Attempt
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore, as_json
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError

HEADINGS = (
    "## Abstract",
    "## Artifact check-list (meta-information)",
    "**Algorithm**",
    "**Compilation**",
    "**Model**",
    "**Data set**",
    "**Run-time environment**",
    "**Hardware**",
    "**Disk space**",
    "**Time to complete**",
    "## Installation",
    "## Experiment workflow",
    "## Evaluation and expected results",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("an artifact")
    results = write_results(folder / "results")
    for number, status in enumerate(("finished", "failed", "running")):
        attempt = Attempt(
            recipe="rtn", model="m", machine="box", started=f"2026-01-0{number + 1}",
            status=status, wall_s=3600.0 * (number + 1), cpu_s=7200.0, peak_memory_bytes=2**30,
        )  # fmt: skip
        path = results / FOLDER / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_json(attempt.model_dump(mode="json")), encoding="utf-8")
    artifact.make(shown(results), results, folder / "out" / "a")
    return folder / "out" / "a"


def test_it_has_what_a_reviewer_asks_for(made: Path) -> None:
    text = (made / "README.md").read_text(encoding="utf-8")
    assert [heading for heading in HEADINGS if heading not in text] == []
    assert sorted(p.stem for p in (made / "recipes").iterdir()) == ["dense", "rtn", "wanda-2of4"]
    assert len(list((made / "results" / "v1").rglob("*.json"))) == 3
    cff = yaml.safe_load((made / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= cff.keys()


def test_the_checksums_are_those_of_every_file(made: Path) -> None:
    sums = dict(
        reversed(line.split("  ", 1))
        for line in (made / artifact.SUMS).read_text(encoding="utf-8").splitlines()
    )
    files = {p.relative_to(made).as_posix(): p for p in made.rglob("*") if p.is_file()}
    del files[artifact.SUMS]
    assert sums == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}


def test_failed_and_killed_runs_count_in_the_compute(made: Path) -> None:
    text = (made / "CHECKLIST.md").read_text(encoding="utf-8")
    assert "| finished | 1 | 1.0 | 2.0 | 1.0 |" in text
    assert "| failed | 1 | 2.0 | 2.0 | 1.0 |" in text
    assert "| killed, or still running | 1 | 3.0 | 2.0 | 1.0 |" in text


def test_the_lock_names_exact_versions_of_this_projects_dependencies(made: Path) -> None:
    lines = (made / "requirements.lock").read_text(encoding="utf-8").splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    assert pins["safetensors"] == version("safetensors")
    assert pins["torch"] == "1"  # as the records say, not as it is here
    assert "compression-trinity" not in pins


def test_packages_that_hold_a_model_or_a_method_are_installed_too(tmp_path: Path) -> None:
    one = one_record("dense", [])
    model = one.model.model_copy(update={"id": "package:llm-of-mine"})
    environment = one.environment | {"plugins": {"my-methods": "0.1"}}
    record.write(one.model_copy(update={"model": model, "environment": environment}), tmp_path)
    made = tmp_path / "out" / "a"
    artifact.make(shown(tmp_path), tmp_path, made)
    text = (made / "README.md").read_text(encoding="utf-8")
    install = text.partition("## Installation")[2].partition("```\n\n")[0]
    assert "pip install --no-deps llm-of-mine\n" in install
    assert "pip install --no-deps my-methods==0.1\n" in install


def test_counts_are_expected_exactly_and_accuracies_within_their_interval(made: Path) -> None:
    found = json.loads((made / "expected.json").read_text(encoding="utf-8"))
    by = {(e["run"], e["name"], e["metric"]): e for e in found}
    assert by["rtn", "checkpoint", "bits_per_weight"]["rule"] == expected.EXACT
    piqa = by["rtn", "piqa", "acc"]
    assert (piqa["rule"], piqa["low"] < piqa["value"] < piqa["high"]) == (expected.INTERVAL, True)
    speedup = by["rtn", "decode", "speedup"]
    assert (speedup["low"], speedup["high"]) == pytest.approx((2.7, 5.5))  # of [3.6, 4.4]
    assert not any(e["metric"] in ("tokens_per_s", "tpot_s") for e in found)


def test_every_number_is_in_the_table(made: Path) -> None:
    text = (made / "results" / "runs.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == sum(len(r.record.measurements) for r in shown(made / "results"))
    assert all((made / "results" / row["record"]).is_file() for row in rows)


def test_the_archive_is_the_folder_and_the_same_every_time(made: Path, tmp_path: Path) -> None:
    results = made.parents[1] / "results"
    again = artifact.make(shown(results), results, tmp_path / "a")
    first = made.parent / "a.tar.gz"
    assert again.read_bytes() == first.read_bytes()
    with tarfile.open(first) as archive:
        names = {f"{made.name}/{p.relative_to(made).as_posix()}" for p in made.rglob("*.*")}
        assert {name for name in names if (made.parent / name).is_file()} <= set(archive.getnames())


def test_lm_evals_own_table_reads_the_results(made: Path) -> None:
    path = next((made / "lm_eval" / "rtn").glob("results_*.json"))
    from lm_eval.utils import make_table  # loads half of lm-eval

    text = make_table(json.loads(path.read_text(encoding="utf-8")))
    assert "|piqa|" in text.replace(" ", "")
    assert "0.6667" in text


def test_runs_of_one_name_have_recipes_of_their_own(tmp_path: Path) -> None:
    one = one_record("dense", [])
    other = one.model_copy(update={"model": one.model.model_copy(update={"label": "N"})})
    for found in (one, other):
        record.write(found, tmp_path)
    assert len(set(expected.names_of(shown(tmp_path)).values())) == 2


def test_an_unknown_licence_is_said_to_be_unknown(made: Path) -> None:
    runs = shown(made / "results")
    assert set(licences.of_models(runs).values()) == {licences.UNKNOWN}
    assert licences.of_data(runs)["piqa"][0] == "AFL-3.0"
    assert licences.of_data(runs)["c"][0] == licences.UNKNOWN


def test_a_folder_that_holds_something_is_not_written_over(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="not an empty folder"):
        artifact.make(shown(made / "results"), made / "results", tmp_path)


def test_an_artifact_runs_again_in_a_clean_folder(tmp_path: Path) -> None:
    asked = Recipe(
        name="tiny",
        model=ModelSpec(id="random:tiny-llama"),
        compress=CompressSpec(steps=(Step(method="magnitude", pattern="2:4"),)),
        evaluate=EvaluateSpec(suites=(SuiteSpec(suite="perplexity-pydoc", windows=3, seqlen=32),)),
    )
    run = Run(asked, StageStore(tmp_path / "store"), Reporter(quiet=True))
    record.write(run.finish().record, tmp_path / "results")
    archive = artifact.make(shown(tmp_path / "results"), tmp_path / "results", tmp_path / "a")
    clean = tmp_path / "a clean folder"
    # Python 3.11.4 brought the filter, and 3.12 asks for one.
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as packed:
        packed.extractall(clean, **safely)
    done = subprocess.run(
        [sys.executable, artifact.SCRIPT, "--out", "again"],
        cwd=clean / "a",
        env={**os.environ, "TRINITY_CACHE": str(clean / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 recipes run, 0 numbers do not agree" in done.stdout
    (again,) = (clean / "a" / "again" / "v1").rglob("*.json")
    assert record.read(again).measurements == run.finish().record.measurements


def test_the_script_judges_by_the_rule_of_each_number(made: Path) -> None:
    script = runpy.run_path(str(made / artifact.SCRIPT), run_name="script")
    held = json.loads(next((made / "results" / "v1").rglob("rtn/*.json")).read_text("utf-8"))
    entries = json.loads((made / "expected.json").read_text(encoding="utf-8"))
    mine = [entry for entry in entries if entry["run"] == "rtn"]
    assert {script["judge"](entry, held)[0] for entry in mine} == {"agrees"}
    for entry in mine:
        moved = {**entry, "value": -1.0, "low": -2.0, "high": -1.0}
        assert script["judge"](moved, held)[0] == "differs"
        assert script["judge"]({**entry, "name": "absent"}, held)[0] == "missing"


def test_a_speed_is_judged_with_its_noise(made: Path) -> None:
    script = runpy.run_path(str(made / artifact.SCRIPT), run_name="script")
    entry = {
        **{"name": "decode", "metric": "speedup", "engine": "iree", "rule": expected.RATIO},
        **{"value": 2.0, "low": 1.5, "high": 2.5},
    }

    def judged(value: float, low: float, high: float) -> str:
        again = {**entry, "value": value, "interval": {"low": low, "high": high}}
        verdict: str = script["judge"](entry, {"measurements": [again]})[0]
        return verdict

    assert judged(1.4, 1.2, 1.6) == judged(2.7, 2.4, 3.0) == "agrees"
    assert judged(1.4, 1.3, 1.45) == judged(2.7, 2.6, 2.8) == "differs"
