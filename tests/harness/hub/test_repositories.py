"""harness/hub/repositories.py against a hub on this machine: what is fetched, checked, converted
and kept.
"""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.harness.hub.asking import GATED, OPT, Listener, files_of, hub_folder, refused
from tests.hub.server import FakeHub
from tests.hub.trouble import Fault
from trinity.harness.hub import failures
from trinity.harness.hub import repositories as hub_models
from trinity.harness.models.decoder import Decoder
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.recipes import paper
from trinity.harness.sources.sources import resolve
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError, MachineError

# No test waits for a hub.
pytestmark = pytest.mark.usefixtures("waits")


def _fetched(hub: FakeHub) -> set[str]:
    """Names of the files whose bytes were sent."""
    gets = [request.split()[1] for request in hub.requests if request.startswith("GET ")]
    names = {path.split("/")[-1] for path in gets if "/resolve/" in path}
    return names | {path.split("/")[-2] for path in gets if path.count("/") == 2}


@pytest.mark.parametrize("repo", [OPT, "facebook/opt-350m", "facebook/opt-1.3b"])
def test_a_model_of_pickles_is_read_as_transformers_reads_it(
    hub: FakeHub, store: StageStore, listener: Listener, repo: str
) -> None:
    found = resolve(repo, None, store, reporter=listener)
    assert "pytorch_model.bin" not in {p.name for p in found.path.iterdir()}
    ours = Decoder(found.path, torch.float32, torch.device("cpu"))
    ours.load_outside_blocks()
    for index in range(len(ours.blocks)):
        ours.load(f"{ours.family.blocks}.{index}")
    snapshot = next((Path(constants.HF_HUB_CACHE) / hub_folder(repo) / "snapshots").iterdir())
    theirs = AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32)
    ids = torch.tensor([tokenizer_of(found.path)("A loop repeats a statement.")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids).logits, theirs(ids).logits, rtol=0, atol=0)


def test_pickled_weights_keep_type_and_values(hub: FakeHub, store: StageStore) -> None:
    path = resolve(OPT, None, store).path
    tensors: dict[str, Tensor] = load_file(path / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert torch.equal(tensors["lm_head.weight"], tensors["model.decoder.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("repo", "unwanted"),
    [
        (OPT, {"tf_model.h5", "flax_model.msgpack", "README.md"}),
        ("huggyllama/llama-7b", {"consolidated.safetensors"}),
    ],
)
def test_weights_are_fetched_in_one_form(
    hub: FakeHub, store: StageStore, repo: str, unwanted: set[str]
) -> None:
    resolve(repo, None, store)
    held = set(hub.repositories["models", repo].commits.popitem()[1])
    assert _fetched(hub) & held == held - unwanted - {"README.md"}


def test_safetensors_are_preferred_to_pickles(hub: FakeHub, store: StageStore) -> None:
    hub.tokens["ours"] = {GATED}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "ours")
        found = resolve(GATED, None, store)
    assert "pytorch_model.bin" not in _fetched(hub)
    assert {"tokenizer.model", "chat_template.jinja"} <= {p.name for p in found.path.iterdir()}


def test_progress_is_told_in_megabytes_and_ends_with_a_rate(
    hub: FakeHub, store: StageStore, listener: Listener
) -> None:
    hub.add("some/model", {**files_of(hub, OPT), "vocab.txt": b" " * 12_000_000})
    resolve("some/model", None, store, reporter=listener)
    steps = [text for text in listener.said if text.startswith("fetch some/model, MB")]
    assert steps[-1].endswith("13/13")
    assert any(text.startswith("fetched some/model: 12.") for text in listener.said)


# Failures: each its own sentence, remedy and exit code.


def test_a_misspelt_id_names_its_neighbour(hub: FakeHub, store: StageStore) -> None:
    error = refused(store, "facebook/opt-125n")
    assert isinstance(error, ConfigError)
    assert "Did you mean facebook/opt-125m" in str(error)


def test_a_misspelt_id_is_said_to_be_that_beside_a_broken_paper(
    hub: FakeHub, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = paper.load

    def one_is_broken(name: str) -> paper.Paper:
        if name == "acme":
            raise ConfigError("paper 'acme' is broken")
        return load(name)

    names = paper.names()
    monkeypatch.setattr(paper, "names", lambda: ["acme", *names])
    monkeypatch.setattr(paper, "load", one_is_broken)
    assert "Did you mean facebook/opt-125m" in str(refused(store, "facebook/opt-125n"))


def test_an_id_that_cannot_be_one_is_refused_in_our_words(hub: FakeHub, store: StageStore) -> None:
    error = str(refused(store, "a/b/c"))
    assert "a hub id is NAME or OWNER/NAME" in error
    assert "Repo id" not in error


def test_a_gated_model_without_token_names_the_licence_and_the_log_in(
    hub: FakeHub, store: StageStore
) -> None:
    error = refused(store, GATED)
    assert isinstance(error, MachineError)
    assert "no token is known" in str(error)
    assert f"https://huggingface.co/{GATED}" in str(error)
    assert "hf auth login" in str(error)


def test_a_gated_model_with_a_token_says_to_ask_for_access(
    hub: FakeHub, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["ours"] = set()
    monkeypatch.setenv("HF_TOKEN", "ours")
    assert "has no access to it. Ask for access" in str(refused(store, GATED))


def test_a_token_that_is_not_valid_is_said_to_be_that(
    hub: FakeHub, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "expired")
    assert "refuses the token given here" in str(refused(store, OPT))


def test_a_wrong_revision_lists_branches_and_tags(hub: FakeHub, store: StageStore) -> None:
    held = hub.repositories["models", OPT]
    held.tags["v1"] = held.branches["main"]
    error = refused(store, OPT, "v2")
    assert isinstance(error, ConfigError)
    assert "Branches: main. Tags: v1." in str(error)


def test_a_model_without_weights_that_are_read_says_what_it_holds(
    hub: FakeHub, store: StageStore
) -> None:
    hub.add("some/model", {"config.json": b"{}", "model.gguf": b"x"})
    assert "it holds config.json, model.gguf" in str(refused(store, "some/model"))


def test_a_rate_limit_is_waited_for_as_long_as_it_says(
    hub: FakeHub, store: StageStore, listener: Listener, waits: list[float]
) -> None:
    hub.fail(Fault.RATE_LIMIT, r"GET /api/models", times=2, seconds=7)
    resolve(OPT, None, store, reporter=listener)
    assert waits == [7, 7]
    assert f"model '{OPT}': HTTP 429; waiting 7 s, then try 2 of 7" in listener.said


def test_a_rate_limit_of_an_hour_is_not_waited_for(
    hub: FakeHub, store: StageStore, waits: list[float]
) -> None:
    hub.fail(Fault.RATE_LIMIT, r"GET /api/models", seconds=3600)
    error = str(refused(store, OPT))
    assert "Wait 3600 s" in error
    assert "after 1 try)" in error
    assert waits == []


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.RESET])
def test_a_hub_that_fails_is_asked_again_and_then_named(
    hub: FakeHub, store: StageStore, waits: list[float], fault: Fault
) -> None:
    hub.fail(fault, r"GET /api/models/", times=3)
    assert resolve(OPT, None, store).commit
    assert waits == [1, 2, 4]
    hub.fail(fault, r"GET /api/models/")
    error = str(refused(store, "facebook/opt-350m"))
    assert "after 7 tries" in error
    assert waits[3:] == list(failures.WAITS_S)


@pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.RESET, Fault.UNAVAILABLE])
def test_a_file_that_breaks_off_is_fetched_again(
    hub: FakeHub, store: StageStore, fault: Fault
) -> None:
    hub.fail(fault, r"GET /pytorch_model.bin", times=1)
    assert resolve(OPT, None, store).commit


def test_a_file_that_comes_damaged_is_fetched_again_and_then_refused(
    hub: FakeHub, store: StageStore, listener: Listener
) -> None:
    hub.fail(Fault.CORRUPT, r"GET /pytorch_model.bin", times=1)
    resolve(OPT, None, store, reporter=listener)
    assert any("pytorch_model.bin came damaged" in text for text in listener.said)
    hub.fail(Fault.CORRUPT, r"GET /pytorch_model.bin")
    assert "came twice with other bytes" in str(refused(store, "facebook/opt-350m"))


def test_a_proxys_page_is_named_as_that(hub: FakeHub, store: StageStore) -> None:
    hub.fail(Fault.PROXY, r"/")
    error = str(refused(store, OPT))
    assert "answered in its place" in error
    assert "HTTPS_PROXY" in error


def test_no_network_is_said_at_once(hub: FakeHub, store: StageStore, waits: list[float]) -> None:
    hub.close()
    assert "cannot be reached" in str(refused(store, OPT))
    assert waits == []


def test_a_full_disk_is_found_before_the_download(
    hub: FakeHub, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(hub_models.shutil, "disk_usage", lambda _: full)
    assert "GB free. Make room, or set HF_HOME" in str(refused(store, OPT))
    assert not any("pytorch_model" in request for request in hub.requests)


def test_a_disk_that_fills_up_meanwhile_is_named(
    hub: FakeHub, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    assert "the disk is full" in str(refused(store, OPT))
