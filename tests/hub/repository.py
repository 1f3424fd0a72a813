"""A repository of the hub: files by commit, and how the hub describes them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE = (".bin", ".safetensors", ".parquet", ".gz", ".h5", ".msgpack", ".pt", ".model")


@dataclass
class Repository:
    """Files by commit, and names of commits.

    gated: its files want a token with access   private: it does not exist without one
    """

    kind: str
    name: str
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch that holds these files and no others.  ->  its sha"""
        content = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        text = json.dumps([self.name, len(self.commits), content], sort_keys=True)
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a sha names."""
        revision = revision.removeprefix("refs/heads/")
        known = {**self.tags, **self.branches, **{sha: sha for sha in self.commits}}
        return known.get(revision)


def is_large(path: str) -> bool:
    """Whether a file is kept outside git, under its sha256."""
    return path.endswith(LARGE)


def git_sha(data: bytes) -> str:
    """git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def described(path: str, data: bytes) -> dict[str, Any]:
    """A file as the hub's listings describe it."""
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": git_sha(data),
    }
    if is_large(path):
        entry["lfs"] = {
            "oid": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "pointerSize": 134,
        }
    return entry


def folders(files: Mapping[str, bytes], below: str) -> list[str]:
    """Every folder of these paths, none of those that hold `below` itself."""
    folders = set()
    for path in files:
        pieces = path.split("/")[:-1]
        folders |= {"/".join(pieces[: depth + 1]) for depth in range(len(pieces))}
    return sorted(
        folder for folder in folders if folder.startswith(below) and f"{folder}/" != below
    )


def described_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": git_sha(path.encode())}
