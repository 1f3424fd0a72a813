"""`trinity repro` from the hub to the table: real names and protocols, tiny random models."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.hub import fixtures
from tests.hub.server import FakeHub
from trinity.harness.cli import app
from trinity.harness.hub import data_sets
from trinity.harness.installed import doctor
from trinity.harness.recipes import paper
from trinity.harness.repro import availability, repro
from trinity.harness.runs.run import Finished, Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, MachineError

MODELS = ("facebook/opt-125m", "facebook/opt-350m")
GATED = "meta-llama/Llama-2-7b-hf"
SIZES: dict[str, Any] = {
    "parameters": {"group_size": 16, "tune_optimizer": "adamw", "tune_rate": 0.1, "tune_batch": 2},
    "data": [
        {
            "hub": True,
            "calibration": {"dataset": "c4", "samples": 2, "seqlen": 32},
            "evaluate": {
                "suites": [
                    {"suite": "perplexity-wikitext2", "seqlen": 32, "windows": 2},
                    {"suite": "slim-zeroshot", "limit": 2, "tasks": ["piqa", "openbookqa"]},
                ]
            },
        }
    ],
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLiM's own tables and profiles, at sizes that models of 64 positions have."""
    whole = paper.load("slim").model_dump()
    for name in ("small", "paper"):
        whole["profiles"][name] |= SIZES
    whole["profiles"]["small"]["rows"] = ["dense", "slim-lora-2of4"]
    whole["profiles"]["paper"] |= {
        "tables": ["table1"],
        "rows": ["dense", "wanda-2of4"],
        "models": [GATED, "facebook/opt-125m"],
    }
    definition = paper.Paper.model_validate(whole)
    monkeypatch.setattr(paper, "load", lambda _: definition)


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["repro", "slim", *arguments, "--quiet"])


@pytest.mark.usefixtures("tiny")
def test_the_small_profile_is_chosen_and_fills_a_table_for_each_model_beside_the_papers_numbers(
    hub: FakeHub, tmp_path: Path
) -> None:
    done = _run("--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    tables = json.loads(done.stdout)["tables"]
    assert [table["model"] for table in tables] == ["opt-125m", "opt-350m"]
    for table, published in zip(tables, ("34.62", "34.36"), strict=True):
        text = Path(table["files"][0]).read_text(encoding="utf-8")
        assert published in text
        assert "differ from the paper's" not in text
    records = [json.loads(p.read_text("utf-8")) for p in (tmp_path / "v1").rglob("*.json")]
    commits = {hub.repositories["models", model].branches["main"] for model in MODELS}
    assert {record["model"]["revision"] for record in records} == commits
    assert len(records) == 4


@pytest.mark.usefixtures("tiny")
def test_a_model_that_is_gated_is_a_row_that_says_so_and_the_rest_go_on(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "has_gpu", lambda: True)
    done = _run("--out", str(tmp_path), "--profile", "paper")
    assert done.exit_code == 1
    assert "is gated" in done.stdout
    assert "model opt-125m" in done.stdout
    assert "2 rows were not run" in str(done.exception)
    (gated,) = (tmp_path / "tables").rglob("*Llama-2-7b-hf-part.md")
    words = f"| Wanda | Group AbsMax | 2:4 | model '{GATED}': is gated"
    assert words in gated.read_text("utf-8")
    assert gated.with_suffix(".csv").read_text("utf-8").count("not run") == 2
    first = next(i for i, r in enumerate(hub.requests) if "pytorch_model" in r)
    assert any(f"{GATED}/auth-check" in request for request in hub.requests[:first])


@pytest.mark.usefixtures("tiny")
def test_models_are_selected_by_a_glob(hub: FakeHub, tmp_path: Path) -> None:
    chosen = repro.choose("slim", repro.Selection(profile="small", models="*350m"))
    assert chosen.models == ("facebook/opt-350m",)
    with pytest.raises(ConfigError, match="Models: facebook/opt-125m, facebook/opt-350m"):
        repro.choose("slim", repro.Selection(profile="small", models="opt-350m"))


def test_the_profile_follows_the_machine(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slim, wanda = paper.load("slim"), paper.load("wanda")
    assert availability.default_profile(slim) == "small"
    assert availability.default_profile(wanda) == "embedded"
    hub.close()
    availability.hub_failure.cache_clear()
    assert availability.default_profile(slim) == "embedded"
    monkeypatch.setattr(availability, "has_gpu", lambda: True)
    assert availability.default_profile(slim) == "paper"


def test_a_hub_that_refuses_a_token_answers_and_the_doctor_says_what_it_refuses(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "expired")
    assert availability.hub_answers()
    assert availability.default_profile(paper.load("slim")) == "small"
    answer = doctor._hub()
    assert answer.lacks
    assert "refuses" in answer.value
    assert "or unset HF_TOKEN" in answer.remedy
    hub.close()
    availability.hub_failure.cache_clear()
    assert not availability.hub_answers()
    assert "cannot be reached" in doctor._hub().remedy


class Listener(Reporter):
    """Keeps what is said, and interrupts at a word."""

    def __init__(self, at: str | None = None) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []
        self.at = at

    def say(self, text: str) -> None:
        self.said.append(text)
        if self.at and self.at in text:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("tiny")
def test_the_cost_is_said_before_the_first_download_of_weights_and_a_stop_leaves_a_table(
    hub: FakeHub, tmp_path: Path
) -> None:
    listener = Listener("row 2 of 2")
    asked = repro.Selection(profile="small", models="*125m")
    store = StageStore(tmp_path / "store")
    results = repro.reproduce("slim", asked, tmp_path, store, listener)
    stopped = next(results)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert stopped.files[0].name.endswith("-part.md")
    assert "| Dense | none | dense |" in stopped.markdown
    costs = [i for i, text in enumerate(listener.said) if "to fetch" in text or "estimated" in text]
    fetched = next(i for i, text in enumerate(listener.said) if text.startswith("fetched"))
    assert len(costs) == 2
    assert costs[-1] < fetched


def test_a_profile_that_needs_a_gpu_names_those_that_do_not(tmp_path: Path) -> None:
    asked = repro.Selection(profile="paper")
    store = StageStore(tmp_path / "store")
    with pytest.raises(MachineError, match="--profile small"):
        next(repro.reproduce("slim", asked, tmp_path, store, Reporter(quiet=True)))


def _fetch(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["fetch", *arguments, "--quiet"])


@pytest.mark.usefixtures("tiny")
def test_what_was_fetched_beforehand_runs_without_a_network(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = ("--profile", "small", "--model", "*125m", "--rows", "dense")
    done = _fetch("slim", *part, "--json")
    assert done.exit_code == 0, done.exception
    fetched = json.loads(done.stdout)["fetched"]
    assert [item["what"] for item in fetched][:2] == ["model facebook/opt-125m", "text c4 (train)"]
    assert all(item["bytes"] > 0 for item in fetched)
    command = "trinity repro slim --profile small --rows dense --model '*125m'"
    assert json.loads(done.stdout)["run"] == command
    hub.close()
    fixtures.use(hub.url, tmp_path / "hf", monkeypatch, offline=True)
    data_sets.asked_once.cache_clear()
    done = CliRunner().invoke(
        app, ["repro", "slim", *part, "--out", str(tmp_path / "out"), "--quiet"]
    )
    assert done.exit_code == 0, done.exception


def test_one_thing_that_is_not_to_be_had_does_not_keep_the_rest_away(
    hub: FakeHub, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{id: {GATED}}}\ncalibration: {{dataset: c4}}\n"
        "compress: {steps: [{method: wanda, pattern: 2:4}]}\n",
        encoding="utf-8",
    )
    done = _fetch(str(recipe))
    assert done.exit_code == 1
    assert "text c4 (train)" in done.stdout
    assert "is gated" in str(done.exception)


def test_options_that_say_nothing_of_what_is_fetched_are_refused(hub: FakeHub) -> None:
    of_model = _fetch("facebook/opt-125m", "--profile", "small")
    assert "--profile says nothing" in str(of_model.exception)
    assert "--revision says nothing" in str(_fetch("slim", "--revision", "main").exception)


@pytest.mark.usefixtures("tiny")
def test_a_model_of_a_kind_that_is_not_handled_is_a_row_that_says_so(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("some/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"no"})
    slim = paper.load("slim")
    small = slim.profiles["small"]
    changed = small.model_copy(update={"models": ("some/bert", *small.models[:1])})
    profiles = {**slim.profiles, "small": changed}
    monkeypatch.setattr(paper, "load", lambda _: slim.model_copy(update={"profiles": profiles}))
    asked = repro.Selection(profile="small", rows="dense")
    store = StageStore(tmp_path / "store")
    refused, whole = repro.reproduce("slim", asked, tmp_path, store, Reporter(quiet=True))
    assert [("bert" in f.reason) for f in refused.failed] == [True]
    assert not whole.failed


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError()],
)
def test_a_row_for_which_memory_is_too_small_is_said_and_the_next_one_runs(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    finished = Run.finish

    def finish(self: Run) -> Finished:
        if self.recipe.name == "dense":
            raise error
        return finished(self)

    monkeypatch.setattr(Run, "finish", finish)
    store = StageStore(tmp_path / "store")
    asked = repro.Selection(profile="small", models="*125m")
    (result,) = repro.reproduce("slim", asked, tmp_path, store, Reporter(quiet=True))
    assert [(f.row.name, f.reason.partition(":")[0]) for f in result.failed] == [
        ("dense", "out of memory")
    ]
    assert "| SLiM-LoRA (the paper's algorithm) |" in result.markdown
    assert "| Dense | none | dense | out of memory" in result.markdown
    assert "1 rows were not run" in str(repro.incomplete([result]))
