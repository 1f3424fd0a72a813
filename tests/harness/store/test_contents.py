import logging
import os
import time
from pathlib import Path

import pytest

from tests.harness import sharing
from trinity.harness.store import contents, own_code
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError, MachineError

DAY = 86_400.0


def _stage(store: StageStore, number: int, size: int, days: float, code: str = "") -> Path:
    inputs = {"n": number, "code": code}
    place = store.fill("kind", inputs, lambda f: (f / "file").write_bytes(bytes(size)) and None)
    os.utime(place, (time.time() - days * DAY,) * 2)
    return place


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    """Ten stages of 1000 bytes and a manifest, used 0 to 9 days ago."""
    found = StageStore(tmp_path / "store")
    for number in range(10):
        _stage(found, number, 1000, number)
    return found


def test_stages_are_listed_longest_unused_first_and_use_makes_them_young(
    store: StageStore,
) -> None:
    found = contents.stages_of(store.root)
    assert [stage.kind for stage in found] == ["kind"] * 10
    assert all(1000 < stage.size_bytes < 1500 for stage in found)
    oldest = found[0]
    assert oldest.place == store.place("kind", {"n": 9, "code": ""})
    assert store.get("kind", {"n": 9, "code": ""}) == oldest.place
    assert contents.stages_of(store.root)[-1].place == oldest.place


def test_a_file_that_two_stages_share_counts_once(store: StageStore) -> None:
    before = sum(stage.size_bytes for stage in contents.stages_of(store.root))
    first = store.place("kind", {"n": 0, "code": ""}) / "file"
    store.fill("other", {}, lambda folder: os.link(first, folder / "file"))
    after = sum(stage.size_bytes for stage in contents.stages_of(store.root))
    assert after - before < 1000


def test_age_and_size_choose_what_goes(store: StageStore) -> None:
    found = contents.stages_of(store.root)
    aged = contents.to_prune(found, unused_s=6.5 * DAY)
    assert aged == found[:3]
    small = contents.to_prune(found, size_bytes=5 * found[0].size_bytes)
    assert small == found[:5]
    assert contents.to_prune(found) == []


def test_stages_of_other_code_are_unreachable_and_of_unknown_code_are_kept(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stage(store, 20, 10, 1, own_code.sha256(own_code))
    unreachable = lambda: contents.to_prune(contents.stages_of(store.root), unreachable=True)  # noqa: E731
    assert unreachable() == []
    monkeypatch.setattr(own_code.SourceTree, "sha256", lambda *_: "after an edit")
    (gone,) = unreachable()
    assert (gone.place / "file").stat().st_size == 10


def test_what_is_removed_is_gone_and_made_again_when_it_is_wanted(store: StageStore) -> None:
    places = [stage.place for stage in contents.stages_of(store.root)[:4]]
    store.remove(places)
    assert not any(place.exists() for place in places)
    assert list((store.root / "replaced").iterdir()) == []
    assert _stage(store, 9, 1000, 0) == places[0]


def test_nothing_is_removed_while_another_process_is_there(
    store: StageStore, tmp_path: Path
) -> None:
    store.fill("kind", {}, lambda folder: (folder / "file").touch())
    with sharing.process(sharing.read_and_stay, store.root, tmp_path) as other:
        sharing.appears(tmp_path / "started")
        with pytest.raises(MachineError, match=rf"in use by process {other.pid} on "):
            store.remove([store.place("kind", {})])
    assert store.get("kind", {}) is not None


def test_a_store_beyond_its_size_loses_what_was_used_longest_ago_but_nothing_of_the_last_day(
    store: StageStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contents.keep_bounded(store)
    assert len(contents.stages_of(store.root)) == 10  # half of a disk is more
    monkeypatch.setenv(contents.LIMIT, "5KB")
    with caplog.at_level(logging.WARNING):
        contents.keep_bounded(store)
    assert len(contents.stages_of(store.root)) == 4
    assert "removed the 6 stages" in caplog.text
    monkeypatch.setenv(contents.LIMIT, "0B")
    contents.keep_bounded(store)
    (left,) = contents.stages_of(store.root)
    assert left.place == store.place("kind", {"n": 0, "code": ""})


@pytest.mark.parametrize(("text", "size"), [("5", 5), ("1.5KB", 1500), ("20 gb", 20 * 10**9)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert contents.size_of(text, "--size") == size


@pytest.mark.parametrize("text", ["", "-1", "GB", "1e9", "5 gigabytes"])
def test_what_is_no_size_or_age_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--size"):
        contents.size_of(text, "--size")
    with pytest.raises(ConfigError, match="--older-than"):
        contents.age_of(text, "--older-than")
    assert contents.age_of("30d", "--older-than") == 30 * DAY


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (7 * 10**9, "7.0 GB")]
)
def test_sizes_are_said(size: int, text: str) -> None:
    assert contents.in_units(size) == text
