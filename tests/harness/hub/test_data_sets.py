"""Which commit of a hub's data set is read; the hub itself is replaced at its border."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub.server import FakeHub
from tests.hub.trouble import Fault
from trinity.harness.hub import data_sets
from trinity.methods.errors import MachineError


@pytest.fixture(autouse=True)
def _asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    data_sets.asked_once.cache_clear()
    yield
    data_sets.asked_once.cache_clear()


def hub_says(monkeypatch: pytest.MonkeyPatch, sha: str | None) -> None:
    """sha: of every data set; None: the connection fails"""

    def dataset_info(_: object, dataset: str, timeout: float) -> SimpleNamespace:
        if sha is None:
            msg = "no route\nto it"
            raise OSError(msg)
        return SimpleNamespace(sha=sha)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)


def test_the_hub_is_asked_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, "abc")
    assert data_sets.commit("owner/name") == "abc"
    hub_says(monkeypatch, "def")
    assert data_sets.commit("owner/name") == "abc"


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_hub_the_newest_cached_commit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    hub_says(monkeypatch, None)
    for age, sha in enumerate(("new", "old")):
        folder = tmp_path / "owner___camel_case" / "default" / "0.0.0" / sha
        folder.mkdir(parents=True)
        os.utime(folder, (1000 - age, 1000 - age))
    (tmp_path / "owner___camel_case" / "default" / "0.0.0" / "killed.incomplete").mkdir()
    assert data_sets.commit("owner/CamelCase") == "new"
    assert data_sets.obtainable("owner/CamelCase")


def test_what_is_neither_cached_nor_given_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_says(monkeypatch, None)
    with pytest.raises(MachineError, match=r"owner/name: is not in the cache.*OSError: no route\."):
        data_sets.commit("owner/name")
    assert not data_sets.obtainable("owner/name")


def test_a_hub_that_says_why_is_followed_by_what_the_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise MachineError("data set 'owner/name': the hub limits requests.")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(data_sets, "patiently", refuse)
    data_sets.asked_once.cache_clear()
    with pytest.raises(MachineError, match=r"^data set 'owner/name': the hub limits .* either\.$"):
        data_sets.commit("owner/name")


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [("some/open", "expired", "refuses the token"), ("some/absent", None, "no such data set")],
)
def test_what_the_hub_refuses_is_no_reason_to_read_an_older_commit(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str, token: str | None, says: str
) -> None:
    hub.add("some/open", {"a.txt": b"a"}, kind="datasets")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(data_sets, "cached_commit", lambda *_: "old")
    with pytest.raises(MachineError, match=says):
        data_sets.commit(name)
    assert not data_sets.obtainable(name)


def test_a_busy_or_silent_hub_gives_way_to_the_cache_and_that_is_shown(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_sets, "cached_commit", lambda *_: "old")
    hub.fail(Fault.RATE_LIMIT, "some/busy", seconds=3600)
    assert data_sets.commit("some/busy") == "old"
    hub.close()
    assert data_sets.commit("some/open") == "old"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_one_commit_is_read_whichever_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, "abc")
    assert data_sets.commit("owner/name") == "abc"
    hub_says(monkeypatch, "def")
    assert data_sets.commit("owner/name", "a.txt") == "abc"


class Rows:
    """What `datasets` gives, read from a folder of its cache."""

    def __init__(self, sha: str) -> None:
        self.cache_files = [{"filename": f"/cache/owner___name/default/0.0.0/{sha}/a.arrow"}]


@pytest.mark.parametrize("sha", ["abc", "old"])
def test_what_the_cache_gives_in_place_of_the_commit_is_refused(
    monkeypatch: pytest.MonkeyPatch, sha: str
) -> None:
    hub_says(monkeypatch, "abc")
    asked: dict[str, object] = {}

    def load_dataset(path: str, **arguments: object) -> Rows:
        asked.update(arguments)
        return Rows(sha)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    if sha == "old":
        with pytest.raises(MachineError, match="commit abc was asked for, and the cache gave old"):
            data_sets.load("owner/name", split="test")
        return
    read = data_sets.load("owner/name", split="test")
    assert asked == {"split": "test", "revision": "abc"}
    assert read.source == "huggingface.co/datasets/owner/name, commit abc"


@pytest.mark.parametrize(
    "error", [ConnectionError("no\nroute"), ValueError("bad"), RuntimeError("a script")]
)
def test_a_failed_reading_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub_says(monkeypatch, "abc")

    def load_dataset(path: str, **arguments: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    reason = str(error).partition("\n")[0]
    with pytest.raises(MachineError, match=rf"owner/name: could not be read \(\w+: {reason}\)"):
        data_sets.load("owner/name", split="test")
