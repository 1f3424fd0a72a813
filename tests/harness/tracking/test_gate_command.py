"""`trinity gate --policy`, as it is called: what it measures, judges, writes and ends with."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.tracking.planted import Clock, Timed
from trinity.harness import cli
from trinity.harness.modules.module_stages import Lowered
from trinity.harness.terminal.progress import Reporter
from trinity.harness.tracking import gate_runs
from trinity.harness.tracking.judging import Broken
from trinity.methods import rtn

RECIPE = """\
name: dense
model: {id: "random:tiny-llama"}
compress: {steps: [{method: rtn, bits: 8, group_size: 32}]}
evaluate: {suites: [{suite: fidelity-pydoc, windows: 8, seqlen: 64}]}
"""
POLICY = "recipes: [dense.yaml]\nchecks: [{metric: kl, minimum: 0.001 nats}]\n"


def ended(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trinity", *words, "--quiet"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and a policy, and we stand in it."""
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "dense.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "gate.yaml").write_text(POLICY, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_a_real_gate_passes_and_fails_on_a_planted_regression_of_accuracy(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("run", "dense.yaml", monkeypatch=monkeypatch) == 0
    words = ("gate", "--policy", "gate.yaml", "--baseline", "results")
    assert ended(*words, monkeypatch=monkeypatch) == 0
    assert (project / "gate-results" / "gate.md").read_text("utf-8").startswith("### Gate: passed")
    # The planted regression: a method that loses half of every weight.
    whole = rtn.compress
    monkeypatch.setattr(rtn, "compress", lambda weight, config: whole(weight / 2, config))
    monkeypatch.setenv("TRINITY_CACHE", str(project / "another cache"))
    assert ended("run", "dense.yaml", "--out", "planted", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert ended(*words, "planted", monkeypatch=monkeypatch) == 1
    assert "REGRESSED" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_gate_fails_on_a_slowdown_planted_around_compiled_kernels(
    project: Path, monkeypatch: pytest.MonkeyPatch, trinity_cache: Path, clock: Clock
) -> None:
    sections = (
        "lower: {target: llvm-cpu, length: 8, context: 32}\n"
        "bench: {suites: [decode], prompt: 8, new: 4, repeats: 5, baseline: dense}\n"
    )
    recipe = RECIPE.replace(RECIPE[RECIPE.index("evaluate") :], sections)
    (project / "dense.yaml").write_text(recipe, encoding="utf-8")
    check = "{metric: speedup, allow: 10%, minimum: 10%}"
    (project / "gate.yaml").write_text(f"recipes: [dense.yaml]\nchecks: [{check}]\n", "utf-8")
    load, packed_s = Lowered.load, [1.0]

    def loaded(self: Lowered) -> Any:
        engine: Any = load(self)
        seconds = packed_s[0] if self.info.bits_per_weight < 32 else 3.0
        sessions = engine.session
        engine.session = lambda: Timed(sessions(), clock, seconds, 0)
        return engine

    monkeypatch.setattr(Lowered, "load", loaded)
    assert ended("run", "dense.yaml", monkeypatch=monkeypatch) == 0
    packed_s[0] = 1.5
    shutil.rmtree(trinity_cache / "bench")  # it would be read, for no code of ours has changed
    assert ended("run", "dense.yaml", "--out", "planted", monkeypatch=monkeypatch) == 0
    words = ("gate", "--policy", "gate.yaml", "--baseline", "results", "planted")
    assert ended(*words, monkeypatch=monkeypatch) == 1
    assert json.loads(Path("gate-results/gate.json").read_text("utf-8"))["result"] == "regressed"


@pytest.mark.parametrize("way", ["crash", "late"])
def test_a_run_that_breaks_or_takes_too_long_ends_with_four(
    way: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shell's script: the path of this Python may have a space, which ends a script's first line.
    program = {"crash": "kill -ABRT $$", "late": "exec sleep 60"}[way]
    script = project / "run.sh"
    script.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(gate_runs.sys, "executable", str(script))
    runner = gate_runs.Runner(project, 0.02, True, Reporter(quiet=True))
    found = runner.run("dense", project / "dense.yaml")
    assert isinstance(found, Broken)
    said = {"crash": "was killed by signal 6", "late": "took longer than the 0.02 minutes"}[way]
    assert said in found.why
    words = ("gate", "--policy", "gate.yaml", "--baseline", "last:3")
    (project / "gate.yaml").write_text(f"{POLICY}minutes: 0.02\n", encoding="utf-8")
    assert ended(*words, monkeypatch=monkeypatch) == 4


def test_options_that_belong_to_models_are_refused_beside_a_policy(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("gate", "--policy", "gate.yaml", "--baseline", "last:1", "--margin-speed", "0.1")
    assert ended(*words, monkeypatch=monkeypatch) == 2
    assert "let through in the policy" in capsys.readouterr().err
