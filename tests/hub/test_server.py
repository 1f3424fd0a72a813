"""The hub's own libraries accept this one: what they fetch is what lies on it."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

from tests.hub.fixtures import hub  # noqa: F401  a fixture
from tests.hub.server import FakeHub
from tests.hub.trouble import Fault

LLAMA = "huggyllama/llama-7b"
GATED = "meta-llama/Llama-2-7b-hf"


def test_a_snapshot_holds_the_bytes_of_the_repository(hub: FakeHub) -> None:  # noqa: F811
    held = hub.repositories["models", LLAMA]
    folder = Path(snapshot_download(LLAMA))
    assert folder.name == held.branches["main"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == held.commits[folder.name]


def test_branches_tags_and_commits_name_what_they_named(hub: FakeHub) -> None:  # noqa: F811
    held = hub.repositories["models", LLAMA]
    first = held.branches["main"]
    held.tags["v1"] = first
    second = held.commit({"config.json": b"{}"})
    for revision, commit in {"main": second, "v1": first, first: first}.items():
        assert HfApi().model_info(LLAMA, revision=revision).sha == commit
    with pytest.raises(errors.RevisionNotFoundError):
        HfApi().model_info(LLAMA, revision="v2")


def test_a_gated_repository_is_listed_and_its_files_are_not_given(
    hub: FakeHub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.tokens.update(stranger=set(), friend={GATED})
    assert HfApi().model_info(GATED).gated == "manual"
    for token in (False, "stranger"):
        with pytest.raises(errors.GatedRepoError):
            hf_hub_download(GATED, "config.json", token=token)
        with pytest.raises(errors.GatedRepoError):
            HfApi().auth_check(GATED, token=token)
    assert Path(hf_hub_download(GATED, "config.json", token="friend")).is_file()


def test_data_sets_are_read_as_they_were_written(hub: FakeHub) -> None:  # noqa: F811
    import datasets

    arc = datasets.load_dataset("allenai/ai2_arc", "ARC-Easy", split="test")
    assert arc[1]["choices"] == {"text": ["a list", "a copy", "a loop"], "label": ["A", "B", "C"]}
    files = {"train": "en/c4-train.00000-of-01024.json.gz"}
    c4 = datasets.load_dataset("allenai/c4", data_files=files, split="train")
    assert c4.num_rows == 12


def test_a_fault_strikes_as_often_as_it_is_told(hub: FakeHub) -> None:  # noqa: F811
    hub.fail(Fault.UNAVAILABLE, "GET /api/models/", times=1)
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        HfApi().model_info(LLAMA)
    assert HfApi().model_info(LLAMA).id == LLAMA
