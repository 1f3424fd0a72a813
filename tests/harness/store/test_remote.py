import errno
import importlib.util
import json
import threading
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from trinity.harness.store import remote, stages
from trinity.harness.store.remote import Remote
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import MachineError

INPUTS = {"number": 1}


@pytest.fixture(params=["memory", "file", "ftp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "ftp":
        with _served(tmp_path) as found:
            yield found
        return
    if request.param == "file":
        yield (tmp_path / "there").as_uri()
        return
    yield f"memory://{uuid.uuid4().hex}"


def _served(folder: Path) -> "_Server":
    if importlib.util.find_spec("pyftpdlib") is None:
        pytest.skip("missing: the package pyftpdlib")
    (folder / "served").mkdir()
    return _Server(folder / "served")


class _Server:
    """An FTP server of this machine: a store that is reached over a network, byte by byte."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():  # of asyncore, which Python 3.11 still has
            warnings.simplefilter("ignore", DeprecationWarning)
            from pyftpdlib.authorizers import DummyAuthorizer
            from pyftpdlib.handlers import FTPHandler
            from pyftpdlib.servers import FTPServer

        users = DummyAuthorizer()
        users.add_user("user", "word", str(folder), perm="elradfmwMT")
        handler = type("Handler", (FTPHandler,), {"authorizer": users})
        self.server = FTPServer(("127.0.0.1", 0), handler)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self.over.is_set():
            self.server.serve_forever(timeout=0.02, blocking=False)

    def __enter__(self) -> str:
        self.thread.start()
        port = self.server.socket.getsockname()[1]
        return f"ftp://user:word@127.0.0.1:{port}/store"

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.server.close_all()


def _write(folder: Path) -> None:
    (folder / "a").write_bytes(b"first")
    (folder / "below").mkdir()
    (folder / "below" / "b").write_bytes(bytes(range(256)) * 4096)  # 1 MiB


def _never(folder: Path) -> None:
    raise AssertionError(folder)


def _bytes(place: Path) -> dict[str, bytes]:
    paths = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in paths}


def test_what_one_machine_made_another_fetches_to_the_byte(url: str, tmp_path: Path) -> None:
    first = StageStore(tmp_path / "first", behind=Remote(url))
    made = first.fill("kind", INPUTS, _write)
    second = StageStore(tmp_path / "second", behind=Remote(url))
    fetched = second.fill("kind", INPUTS, _never)
    assert _bytes(fetched) == _bytes(made)
    assert stages.damage(fetched) is None
    assert (first.made, second.made) == (1, 0)


def test_what_is_damaged_there_is_made_again_and_sent_again(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = StageStore(tmp_path / "first", behind=Remote(url)).fill("kind", INPUTS, _write)
    hashes = json.loads((made / stages.MANIFEST).read_text(encoding="utf-8"))["files"]
    there = Remote(url)
    there._files.pipe_file(there._file(hashes["a"]), b"fIrst")  # of the same size
    with caplog.at_level("WARNING"):
        StageStore(tmp_path / "second", behind=Remote(url)).fill("kind", INPUTS, _write)
    assert "is damaged there" in caplog.text
    third = StageStore(tmp_path / "third", behind=Remote(url)).fill("kind", INPUTS, _never)
    assert (third / "a").read_bytes() == b"first"


def test_a_stage_whose_sending_was_cut_short_is_not_there_and_is_sent_by_the_next(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Remote(url)
    store = StageStore(tmp_path / "first", behind=there)
    with monkeypatch.context() as patch:
        patch.setattr(there._files, "pipe_file", _cut)  # by which a manifest is written, last
        with pytest.raises(MachineError, match="reset by peer"):
            store.fill("kind", INPUTS, _write)
    again = StageStore(tmp_path / "second", behind=Remote(url))
    again.fill("kind", INPUTS, _write)
    assert again.made == 1
    StageStore(tmp_path / "third", behind=Remote(url)).fill("kind", INPUTS, _never)


def _cut(place: str, content: bytes) -> None:
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_a_disk_that_fills_up_while_a_stage_is_fetched_is_not_blamed_on_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Remote(f"memory://{uuid.uuid4().hex}")
    StageStore(tmp_path / "first", behind=there).fill("kind", INPUTS, _write)

    def full(there: str, here: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", here)

    monkeypatch.setattr(there._files, "get_file", full)
    with pytest.raises(MachineError, match=r"second: cannot be written \(No space left"):
        StageStore(tmp_path / "second", behind=there).fill("kind", INPUTS, _never)


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out"])
def test_a_manifest_that_names_a_place_outside_is_refused(name: str, tmp_path: Path) -> None:
    there = Remote(f"memory://{uuid.uuid4().hex}")
    StageStore(tmp_path / "first", behind=there).fill("kind", INPUTS, _write)
    place = there._manifest("kind", StageStore(tmp_path / "x").place("kind", INPUTS).name)
    manifest = json.loads(there._files.cat_file(place))
    manifest["files"] = {name: manifest["files"]["a"]}
    there._files.pipe_file(place, json.dumps(manifest).encode())
    store = StageStore(tmp_path / "store" / "second", behind=there)
    store.fill("kind", INPUTS, _write)
    assert store.made == 1
    assert not (tmp_path / "store" / "out").exists()


def test_files_that_stages_share_are_there_once(tmp_path: Path) -> None:
    there = Remote(f"memory://{uuid.uuid4().hex}")
    store = StageStore(tmp_path / "store", behind=there)
    for number in range(3):
        store.fill("kind", {"number": number}, _write)
    assert len(there._files.find(str(there._root / "files"))) == 2


def test_afresh_is_made_here_and_replaces_what_is_there(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    StageStore(tmp_path / "first", behind=Remote(url)).fill("kind", INPUTS, _write)

    def other(folder: Path) -> None:
        (folder / "a").write_bytes(b"second")

    StageStore(tmp_path / "second", fresh=True, behind=Remote(url)).fill("kind", INPUTS, other)
    third = StageStore(tmp_path / "third", behind=Remote(url)).fill("kind", INPUTS, _never)
    assert (third / "a").read_bytes() == b"second"


def test_urls_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MachineError, match=r"TRINITY_CACHE_URL=nowhere://x: cannot be read"):
        Remote("nowhere://x")
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot be read or written"):
        Remote((tmp_path / "file" / "below").as_uri())
    monkeypatch.delenv(remote.VARIABLE, raising=False)
    assert remote.of_environment() is None


def test_a_store_that_stops_answering_is_said_and_what_is_finished_stays(tmp_path: Path) -> None:
    with _served(tmp_path) as url:
        store = StageStore(tmp_path / "first", behind=Remote(url))
    with pytest.raises(MachineError, match="what is finished lies in the store on disk") as said:
        store.fill("kind", INPUTS, _write)
    assert "word" not in str(said.value)  # the password of the URL
