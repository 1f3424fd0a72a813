"""harness/hub/repositories.py without its hub, and what it remembers of one that was asked."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from tests.harness.hub.asking import OPT, Listener, files_of, refused
from tests.hub import fixtures
from tests.hub.server import FakeHub
from tests.hub.trouble import Fault
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.hub import repositories as hub_models
from trinity.harness.hub.failures import Asked
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.recipes.recipe import ModelSpec
from trinity.harness.runs import requests
from trinity.harness.runs.one_model import measuring_of
from trinity.harness.runs.outputs import compress_to
from trinity.harness.runs.run import Run
from trinity.harness.sources.sources import resolve
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError

# No test waits for a hub.
pytestmark = pytest.mark.usefixtures("waits")


def _offline(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.close()
    fixtures.use(hub.url, tmp_path / "hf", monkeypatch, offline=True)


@pytest.mark.parametrize("repo", [OPT, "facebook/opt-1.3b", "huggyllama/llama-7b"])
def test_offline_finds_what_was_fetched_before(
    hub: FakeHub,
    store: StageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
) -> None:
    before = resolve(repo, None, store)
    _offline(hub, tmp_path, monkeypatch)
    assert resolve(repo, None, store) == before
    assert resolve(repo, before.commit, store) == before


def test_offline_needs_no_pickles_once_they_are_converted(
    hub: FakeHub, store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resolve(OPT, None, store)
    _offline(hub, tmp_path, monkeypatch)
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert resolve(OPT, None, store) == before


def test_offline_says_how_to_get_what_is_not_whole(
    hub: FakeHub, store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve("huggyllama/llama-7b", None, store)
    (found.path / "model-00002-of-00002.safetensors").unlink()
    _offline(hub, tmp_path, monkeypatch)
    for repo in ("huggyllama/llama-7b", OPT):
        assert f"trinity fetch {repo}" in str(refused(store, repo))


def test_a_damaged_file_of_the_cache_is_named_with_its_place(
    hub: FakeHub, store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve("huggyllama/llama-7b", None, store)
    blob = (found.path / "model-00002-of-00002.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    _offline(hub, tmp_path, monkeypatch)
    assert str(blob) in str(refused(store, "huggyllama/llama-7b"))


def test_a_file_that_was_deleted_as_advised_is_fetched_again(
    hub: FakeHub, store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve("huggyllama/llama-7b", None, store)
    link = found.path / "tokenizer.json"
    link.resolve().unlink()
    assert resolve("huggyllama/llama-7b", found.commit, store) == found
    assert link.exists()
    link.resolve().unlink()
    _offline(hub, tmp_path, monkeypatch)
    assert "trinity fetch huggyllama/llama-7b" in str(refused(store, "huggyllama/llama-7b"))


def test_an_index_that_was_deleted_is_missing(
    hub: FakeHub, store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve("huggyllama/llama-7b", None, store)
    (found.path / "model.safetensors.index.json").resolve().unlink()
    _offline(hub, tmp_path, monkeypatch)
    assert "trinity fetch huggyllama/llama-7b" in str(refused(store, "huggyllama/llama-7b"))


@pytest.mark.parametrize("repo", [OPT, "huggyllama/llama-7b"])
def test_a_commit_that_another_program_fetched_without_its_tokenizer_is_completed(
    hub: FakeHub, store: StageStore, repo: str
) -> None:
    held = hub.repositories["models", repo]
    commit = held.branches["main"]
    patterns = ["config.json", "*.bin", "model*.safetensors*"]
    snapshot_download(repo, revision=commit, allow_patterns=patterns)
    assert tokenizer_of(resolve(repo, commit, store).path)
    asked = len(hub.requests)
    assert resolve(repo, commit, store)
    assert len(hub.requests) == asked


def test_pickles_that_were_converted_without_their_tokenizer_are_converted_anew_with_it(
    hub: FakeHub, store: StageStore, listener: Listener
) -> None:
    commit = hub.repositories["models", OPT].branches["main"]
    snapshot_download(OPT, allow_patterns=["config.json", "*.bin"])
    alone = hub_models.config_folder(Asked(OPT), store, listener)
    assert not (alone / "vocab.json").exists()
    assert tokenizer_of(resolve(OPT, None, store).path)
    assert tokenizer_of(resolve(OPT, commit, store).path)


def test_half_a_note_of_what_a_name_meant_is_none(
    hub: FakeHub, store: StageStore, listener: Listener
) -> None:
    before = resolve(OPT, None, store)
    (note,) = (store.root / "hub").glob("*.json")
    note.write_text('{"main": "', encoding="utf-8")
    assert resolve(OPT, None, store, reporter=listener) == before
    assert before.commit in note.read_text(encoding="utf-8")


def test_a_hub_that_is_down_gives_way_to_the_copy_of_before_and_that_is_said(
    hub: FakeHub, store: StageStore, listener: Listener
) -> None:
    before = resolve(OPT, None, store)
    hub.close()
    assert resolve(OPT, None, store, reporter=listener) == before
    assert any("using commit" in text for text in listener.said)


def test_a_branch_that_moved_is_fetched_anew(hub: FakeHub, store: StageStore) -> None:
    first = resolve(OPT, None, store)
    held = hub.repositories["models", OPT]
    changed = held.commit({**files_of(hub, OPT), "generation_config.json": b"{}"})
    assert resolve(OPT, None, store).commit == changed
    assert resolve(OPT, first.commit, store) == first


def test_a_checkpoint_remembers_the_commit_that_its_dense_model_is_of(
    hub: FakeHub, store: StageStore, listener: Listener, tmp_path: Path
) -> None:
    out = tmp_path / "checkpoint"
    asked = requests.compression(OPT, "magnitude", ["pattern=2:4"], "float32", out)
    compress_to(asked, out, store, listener)
    held = hub.repositories["models", OPT]
    first = held.branches["main"]
    assert Checkpoint.open(out).summary["model"]["revision"] == first
    held.commit({**files_of(hub, "facebook/opt-1.3b")})
    dense = (
        measuring_of(ModelSpec(id=str(out)), None, store, listener).make_dense().subject.checkpoint
    )
    assert dense.summary["model"]["revision"] == first


def test_a_revision_of_what_is_not_on_the_hub_is_refused(
    hub: FakeHub, store: StageStore, tmp_path: Path
) -> None:
    for model in ("random:tiny-llama", str(tmp_path)):
        with pytest.raises(ConfigError, match="revision 'v1' is for models of the Hugging Face"):
            resolve(model, "v1", store)
    first = resolve(OPT, None, store)
    hub.repositories["models", OPT].commit(files_of(hub, "facebook/opt-1.3b"))
    out = tmp_path / "out"
    asked = requests.compression(OPT, "magnitude", ["pattern=2:4"], "float32", out, first.commit)
    assert Run(asked, store, Reporter(quiet=True)).source == first


def test_a_wait_of_the_library_itself_is_said_too(
    hub: FakeHub, store: StageStore, listener: Listener, waits: list[float]
) -> None:
    hub.fail(Fault.RATE_LIMIT, r"GET /pytorch_model.bin", times=1, seconds=5)
    resolve(OPT, None, store, reporter=listener)
    assert any(text.startswith("Hugging Face hub: Rate limited. Waiting") for text in listener.said)
    assert max(waits) >= 5


def test_a_cache_that_cannot_be_made_is_named(
    hub: FakeHub, store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    fixtures.use(hub.url, tmp_path / "file" / "hf", monkeypatch)
    assert "HF_HOME" in str(refused(store, OPT))


def test_one_command_reads_one_commit_of_a_branch_that_moves_meanwhile(
    hub: FakeHub, store: StageStore, listener: Listener
) -> None:
    first = resolve(OPT, None, store, reporter=listener)
    hub.repositories["models", OPT].commit(files_of(hub, "facebook/opt-1.3b"))
    asked = len(hub.requests)
    assert resolve(OPT, None, store, reporter=listener) == first
    assert len(hub.requests) == asked
    assert resolve(OPT, None, store, reporter=Listener()).commit != first.commit
