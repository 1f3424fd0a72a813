import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.records.test_record import make_record
from tests.harness.tracking.test_gating import git, measured, perplexity, speedup
from trinity.harness.records import record
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.tracking import bisecting, changes, history, history_text
from trinity.harness.tracking.history import Which
from trinity.methods.errors import ConfigError


def environment(**changed: Any) -> dict[str, Any]:
    return {**make_record().environment, **changed}


def kept(results: Path, day: int, *measurements: Measurement, **changed: Any) -> Path:
    date, made_on = f"2026-01-{day:02}", environment(**changed)
    found = make_record(date=date, measurements=list(measurements), environment=made_on)
    return record.write(found, results)


def test_a_step_names_the_first_record_after_it_its_commit_and_what_else_changed(
    tmp_path: Path,
) -> None:
    packages = environment()["packages"]
    for day in range(1, 9):
        bad = day > 5
        changed = {"commit": f"c{day}", "packages": {**packages, "torch": "2" if bad else "1"}}
        kept(tmp_path, day, perplexity(0.2 if bad else 0.0), **changed)
    (series,) = history.of("perplexity", Which(), tmp_path)
    (step,) = series.steps
    assert series.points[step.index].kept.record.date == "2026-01-06"
    said = [change.text for change in series.changed(step)]
    assert said == ["version torch: 1 -> 2", "code trinity.commit: c5 -> c6"]
    data = history.as_data(series)
    assert json.loads(json.dumps(data)) == data
    assert (data["steps"][0]["commit"], data["steps"][0]["worse"]) == ("c6", True)
    notes = " ".join(history_text.grid([series]).notes)
    assert "(worse), first in" in notes
    assert "c6" in notes


def test_another_protocol_or_machine_of_times_begins_another_series(tmp_path: Path) -> None:
    kept(tmp_path, 1, perplexity(), speedup(1))
    kept(tmp_path, 2, perplexity(), speedup(2), machine="other")
    longer = perplexity().model_copy(update={"details": {"seqlen": 2048}})
    kept(tmp_path, 3, longer, speedup(3))
    lengths = [len(series.points) for series in history.of("perplexity", Which(), tmp_path)]
    assert sorted(lengths) == [1, 2]
    lengths = [len(series.points) for series in history.of("speedup", Which(), tmp_path)]
    assert sorted(lengths) == [1, 2]
    (one,) = history.of("speedup", Which(machine="other"), tmp_path)
    assert len(one.points) == 1


def test_a_speedup_keeps_its_series_when_the_dense_checkpoint_is_computed_again(
    tmp_path: Path,
) -> None:
    for day in (1, 2):
        m = speedup(day)
        details = {**m.details, "baseline_model": f"dense (fingerprint{day})", "dense_model": "d"}
        kept(tmp_path, day, m.model_copy(update={"details": details}))
    (series,) = history.of("speedup", Which(), tmp_path)
    assert len(series.points) == 2


def test_a_metric_that_no_record_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no records"):
        history.of("perplexity", Which(), tmp_path)
    kept(tmp_path, 1, perplexity())
    with pytest.raises(ConfigError, match="Did you mean perplexity"):
        history.of("perplexty", Which(), tmp_path)
    with pytest.raises(ConfigError, match="chosen recipe"):
        history.of("perplexity", Which(recipe="x"), tmp_path)


def test_bars_show_the_least_and_the_largest() -> None:
    assert history_text.bars([1, 2, 3]) == "▁▅█"
    assert history_text.bars([2, 2]) == "▁▁"


def test_every_kind_of_change_is_told(tmp_path: Path) -> None:
    def layers(error: float, label: str) -> dict[str, Any]:
        return {"a.b": {"relative_error": error, "sparsity": 0.5, "format": {"label": label}}}

    def of(layer: dict[str, Any], path: str, **changed: Any) -> Record:
        base = make_record()
        return base.model_copy(
            update={
                "checkpoint": base.checkpoint.model_copy(update={"layers": layer}),
                "measurements": [
                    measured("decode", "tokens_per_s", [1.0], "iree").model_copy(
                        update={"path": path}
                    )
                ],
                **changed,
            }
        )

    recipe = {"name": "dense", "model": {"id": "m", "dtype": "float16"}, "bench": None}
    ours = of(layers(0.2, "int2"), "compiled", recipe=recipe, environment=environment(cpu="new"))
    found = changes.between(ours, of(layers(0.1, "int4"), "kernel"))
    texts = [change.text for change in found]
    assert texts == [
        "setting model.dtype: float32 -> float16",
        "machine cpu: Box -> new",
        "kernel path of decode tokens_per_s (iree): kernel -> compiled",
        "format a.b: int4 -> int2",
        "error a.b: 0.1 -> 0.2",
    ]
    assert changes.between(ours, ours) == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A repository of four commits, in which we stand."""
    folder = tmp_path / "a project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commits = []
    for number in range(4):
        git(folder, "commit", "--quiet", "--allow-empty", "--message", f"change {number}")
        commits.append(git(folder, "rev-parse", "HEAD").strip())
    monkeypatch.chdir(folder)
    return folder, commits


def test_bisect_lists_what_lies_between_and_its_session_finds_the_bad_commit(
    project: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commits = project
    records = [
        make_record(environment=environment(project={"commit": commit})) for commit in commits
    ]
    good, bad = tmp_path / "good one.json", tmp_path / "bad.json"
    found = bisecting.between(good, bad, (records[0], records[3]), "gate.yaml")
    assert [subject for *_, subject in found.commits] == ["change 1", "change 2", "change 3"]
    # In place of `trinity`: commit 2 and later are bad.
    tools = tmp_path / "tools"
    tools.mkdir()
    script = f"#!/bin/sh\ngit merge-base --is-ancestor {commits[2]} HEAD && exit 1\nexit 0\n"
    (tools / "trinity").write_text(script, encoding="utf-8")
    (tools / "trinity").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/local/bin:/usr/bin:/bin")
    said = "".join(
        subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
        for line in found.session
    )
    assert f"{commits[2]} is the first bad commit" in said
    assert found.repository == str(folder)


def test_bisect_says_why_there_is_nothing_to_look_through(tmp_path: Path) -> None:
    one = make_record(environment=environment(commit="a" * 40))
    with pytest.raises(ConfigError, match=r"project.commit is not recorded; trinity.commit is the"):
        bisecting.between(tmp_path, tmp_path, (one, one), "gate.yaml")
    other = make_record(recipe={"name": "other", "model": {"id": "m"}})
    with pytest.raises(ConfigError, match="Give two of one recipe"):
        bisecting.between(tmp_path, tmp_path, (one, other), "gate.yaml")
