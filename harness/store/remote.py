"""A store of stages under a URL, behind the one on disk: what others made is fetched, what is made
here is sent.

    URL/files/ab/abcd...          a file's bytes, by their sha256
    URL/KIND/KEY.json             a stage's manifest, the same as on disk, written last

So a stage is there whole or not at all, whoever sends the same one meanwhile, and files that stages
share are there once.  Whatever fsspec reads and writes may be the URL: s3, gs, abfs, sftp, ftp, ...
No locks hold across machines there: two may make a stage at once, and one of the two is kept.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from trinity.harness.store.stages import MANIFEST, file_sha256
from trinity.harness.store.writing import FULL
from trinity.methods.errors import MachineError

logger = logging.getLogger(__name__)

VARIABLE = "TRINITY_CACHE_URL"


def of_environment() -> "Remote | None":
    """The store that TRINITY_CACHE_URL names; None without it."""
    url = os.environ.get(VARIABLE)
    return Remote(url) if url else None


class Remote:
    """Stages under a URL."""

    def __init__(self, url: str) -> None:
        """MachineError if no package here knows such URLs, or nothing answers there."""
        self.url = re.sub(r"//[^/@]*@", "//", url)  # as it is said: without a password
        with self._reached():
            self._files, root = url_to_fs(url)
            self._root = PurePosixPath(root)
            self._files.makedirs(str(self._root), exist_ok=True)

    def fetch(self, kind: str, key: str, stage: Path) -> bool:
        """Fill an empty folder with a stage; False if it is not there, or damaged.

        Its files have the hashes that its manifest names, and lie in the folder.
        """
        with self._reached():
            try:
                text = self._files.cat_file(self._manifest(kind, key))
                files: dict[str, str] = json.loads(text)["files"]
            except FileNotFoundError:
                return False
            except (ValueError, KeyError, TypeError):
                return self._damaged(self._manifest(kind, key))
            for name, sha256 in files.items():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or not _is_sha256(sha256):
                    return self._damaged(self._manifest(kind, key))
                place = stage / path
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._files.get_file(self._file(sha256), str(place))
                except FileNotFoundError:
                    return self._damaged(self._manifest(kind, key))
                if file_sha256(place) != sha256:
                    return self._damaged(self._file(sha256))
        (stage / MANIFEST).write_bytes(text)
        return True

    def send(self, kind: str, key: str, stage: Path) -> None:
        """Put a whole stage there; its manifest is last."""
        text = (stage / MANIFEST).read_bytes()
        with self._reached():
            for name, sha256 in json.loads(text)["files"].items():
                place = self._file(sha256)
                # A file of the right size is there; of a cut one, the size is another.
                if self._size(place) != (stage / name).stat().st_size:
                    self._files.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
                    self._files.put_file(str(stage / name), place)
            place = self._manifest(kind, key)
            self._files.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
            self._files.pipe_file(place, text)

    def _manifest(self, kind: str, key: str) -> str:
        return str(self._root / kind / f"{key}.json")

    def _file(self, sha256: str) -> str:
        return str(self._root / "files" / sha256[:2] / sha256)

    def _size(self, place: str) -> int | None:
        try:
            return int(self._files.info(place)["size"])
        except FileNotFoundError:
            return None

    def _damaged(self, place: str) -> bool:
        """False, after what is damaged is gone, so that it is sent again."""
        logger.warning("%s: %s is damaged there: it is computed again", self.url, place)
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(place)
        return False

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a backend raises what its library does
            if isinstance(error, OSError) and error.errno in FULL:
                raise  # of the disk here
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            msg = (
                f"{VARIABLE}={self.url}: cannot be read or written ({reason}). See to that, or "
                f"unset {VARIABLE}; what is finished lies in the store on disk, and stays."
            )
            raise MachineError(msg) from error


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")
