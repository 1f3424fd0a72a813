"""Several processes, and several versions of the project, on one store; a store that is full,
read-only or gone; clocks that jump.
"""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import jobs, processes
from trinity.harness.store import own_code, stages
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import MachineError

STAGES, TURNS = 8, 25
OWNER_OF_NOTHING = 65534  # 'nobody'


def _content(number: int) -> bytes:
    return str(number).encode() * 20_000


def _share(root: Path, notes: Path, own: int) -> None:
    """Get stages in an order of one's own, now and then afresh; read each whole, write records."""
    rng = random.Random(own)
    for turn in range(TURNS):
        number = rng.randrange(STAGES)

        def write(folder: Path, number: int = number) -> None:
            with (notes / f"making-{number}").open("x"):  # nobody else makes it at once
                for index in range(3):
                    (folder / f"{index}").write_bytes(_content(number))
                time.sleep(rng.uniform(0, 0.002))
            (notes / f"making-{number}").unlink()

        place = StageStore(root, fresh=rng.random() < 0.3).fill("kind", {"n": number}, write)
        assert [(place / f"{i}").read_bytes() for i in range(3)] == [_content(number)] * 3
        stages.write_json(notes / "record.json", {"from": own, "turns": [turn] * 1000})
        assert len(stages.read_json(notes / "record.json")["turns"]) == 1000


@pytest.mark.parametrize("count", [2, 10])
def test_processes_that_share_a_store_make_no_stage_twice_at_once_and_read_each_whole(
    tmp_path: Path, count: int
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with contextlib.ExitStack() as all_of_them:
        started = [
            all_of_them.enter_context(
                processes.started(tmp_path / f"{n}.txt", _share, tmp_path / "store", notes, n)
            )
            for n in range(count)
        ]
        for number, process in enumerate(started):
            process.join(120)
            assert process.exitcode == 0, (tmp_path / f"{number}.txt").read_text()
    StageStore(tmp_path / "store")
    processes.check_tidy(tmp_path)
    assert [path.name for path in notes.iterdir()] == ["record.json"]


def _as_another_version(place: Path) -> None:
    """A small run by code of which every part has another hash."""
    own_code.sha256 = lambda *code, **options: "0" * 64  # type: ignore[assignment]  # this process ends
    jobs.smoke(place, {**jobs.SMALL, "name": "other"})


def test_two_versions_on_one_store_leave_each_other_alone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    jobs.make_data(place / "data")
    processes.whole(place, jobs.smoke, place, jobs.SMALL)
    before = processes.left(place)
    shutil.rmtree(place / "exported")
    shutil.rmtree(place / "compressed")
    processes.whole(place, _as_another_version, place)
    both = processes.left(place)
    kinds = [Path(name).parts[1] for name in both if name not in before and name[:5] == "store"]
    assert {"block", "checkpoint", "suite", "record"} <= set(kinds)
    for name in ("results", "compressed", "exported"):
        shutil.rmtree(place / name)
    processes.whole(place, jobs.smoke, place, jobs.SMALL)
    again = processes.left(place)
    assert {name: again.get(name) for name in before} == before
    assert again.keys() <= both.keys() | before.keys()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, without room."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("missing: the right to mount a file system (root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_at_any_size_is_said_and_costs_only_the_unfinished_stage(
    small_disk: Path, tmp_path: Path
) -> None:
    unbroken = tmp_path / "unbroken"
    jobs.make_data(unbroken / "data")
    processes.whole(unbroken, jobs.smoke, unbroken, jobs.SMALL)
    jobs.make_data(small_disk / "data")
    said, full = tmp_path / "said.txt", 0
    for kilobytes in (*range(64, 4096, 320), 65536):
        command = ["mount", "-o", f"remount,size={kilobytes}k", str(small_disk)]
        subprocess.run(command, check=True)
        code = processes.done(said, jobs.smoke, small_disk, jobs.SMALL)
        text = said.read_text(encoding="utf-8")
        assert code in (0, MachineError.exit_code), text
        if code:
            full += 1
            assert "cannot be written (No space left on device" in text
            assert text.count("\n") == 1
        processes.check_visible(small_disk, processes.left(unbroken))
    assert full > 2
    assert processes.left(small_disk) == processes.left(unbroken)


def _as_nobody(root: Path) -> None:
    """Get a stage that is there, and then one that is not."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(OWNER_OF_NOTHING)
        os.setuid(OWNER_OF_NOTHING)
    store = StageStore(root)
    assert (store.fill("kind", {}, jobs.not_called) / "file").read_text() == "text"
    store.fill("other", {}, jobs.not_called)


def test_a_store_that_may_only_be_read_serves_what_it_has_and_refuses_the_rest() -> None:
    with tempfile.TemporaryDirectory(prefix="trinity-read-only-") as folder:
        place, root = Path(folder), Path(folder, "store")
        StageStore(root).fill(
            "kind", {}, lambda stage: (stage / "file").write_text("text") and None
        )
        for path in (place, *place.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            said = Path(tempfile.gettempdir(), f"{place.name}.txt")
            code = processes.done(said, _as_nobody, root)
            text = said.read_text(encoding="utf-8")
            said.unlink()
        finally:
            for path in (place, *place.rglob("*")):
                path.chmod(0o755)
    assert code == MachineError.exit_code, text
    assert "cannot be written (Permission denied)" in text


def test_a_store_that_is_gone_is_said_at_the_next_stage(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "store")
    store.fill("kind", {"n": 1}, lambda stage: None)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(MachineError, match="is gone"):
        store.fill("kind", {"n": 2}, jobs.not_called)

    other = StageStore(tmp_path / "store")

    def write(stage: Path) -> None:
        shutil.rmtree(tmp_path / "store")
        (stage / "file").write_text("text")

    with pytest.raises(MachineError, match="is gone"):
        other.fill("kind", {"n": 3}, write)


@pytest.mark.parametrize("days", [-4000, 4000])
def test_a_clock_that_jumps_neither_loses_a_stage_nor_hides_damage(
    tmp_path: Path, days: int
) -> None:
    place = StageStore(tmp_path).fill(
        "kind", {}, lambda stage: (stage / "file").write_text("text") and None
    )
    then = time.time() + days * 86_400
    store = StageStore(tmp_path)
    for path in (*place.iterdir(), place, *(tmp_path / "here").iterdir()):
        os.utime(path, (then, then))
    assert store.get("kind", {}) == place
    (place / "file").write_text("tex7")
    assert store.get("kind", {}) is None
