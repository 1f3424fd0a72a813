"""Models of the hub that are on this machine: in the hub's own cache, or converted in our store."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from trinity.harness.hub.failures import Asked
from trinity.harness.models import bin_weights, folders, model_files
from trinity.harness.models.model_tokenizer import VOCABULARIES
from trinity.harness.store.stages import StageStore, file_sha256, read_json, write_json
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAIN = "main"


@dataclass(frozen=True)
class Fetched:
    """A model of the hub on this machine.

    folder: configuration, tokenizer and safetensors   commit: of the repository
    """

    folder: Path
    commit: str


def weights_of(names: Iterable[str], index: Callable[[str], list[str]]) -> list[str]:
    """The files that hold a model's weights, index included; without a form that is read, all
    safetensors, of which the configuration may name one.

    index: the files that an index names
    """
    here = [name for name in names if "/" not in name]
    return model_files.weights_of(here, index) or sorted(
        name for name in here if name.endswith(".safetensors")
    )


def beside_of(names: Iterable[str]) -> list[str]:
    """Configuration and tokenizer, of every kind; not the indices of weights."""
    return sorted(
        name
        for name in names
        if "/" not in name
        and any(fnmatchcase(name, pattern) for pattern in folders.BESIDE)
        and not name.endswith(".index.json")
    )


def find(asked: Asked, store: StageStore) -> Fetched | None:
    """A model that was fetched before; None if anything of it is missing."""
    for commit in _commits(asked, store):
        if found := converted(asked, commit, store):
            return found
        folder = snapshot(asked.repo, commit)
        if not _is_whole(folder):
            continue
        damaged = [p for p in folder.iterdir() if p.exists() and not is_as_listed(p, {})]
        if damaged:
            msg = (
                f"{asked.words}: {damaged[0].resolve()} is damaged: its bytes are not those that "
                f"its name says. Delete it and fetch the model again."
            )
            raise MachineError(msg)
        pickles = bin_weights.files_of(folder)
        if not pickles:
            return Fetched(folder, commit)
        inputs = _inputs(asked.repo, commit)
        if not _has_tokenizer(folder):  # once it is fetched, the model is another one
            inputs["without"] = "tokenizer"
        return Fetched(bin_weights.as_folder(pickles, store, inputs), commit)
    return None


def converted(asked: Asked, commit: str, store: StageStore) -> Fetched | None:
    """A model whose pickles were converted before; they need not be there any more."""
    inputs = _inputs(asked.repo, commit)
    if not store.place("model", inputs).exists():
        return None
    path = store.get("model", inputs)
    return Fetched(path, commit) if path else None


def known(asked: Asked, store: StageStore) -> Fetched | None:
    """A model by its commit that nothing is left to ask for.

    Another program may have fetched a model's weights without its tokenizer.
    """
    commit = asked.revision or MAIN
    if not COMMIT.fullmatch(commit):
        return None
    folder = snapshot(asked.repo, commit)
    if _has_tokenizer(folder):
        return find(asked, store)
    return converted(asked, commit, store)


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in VOCABULARIES)


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot holds a configuration and all weights of the form that would be read, and
    every file beside them that it names: a link may outlive what it leads to.
    """
    if not (folder / folders.CONFIG).is_file():
        return False
    names = [path.name for path in folder.iterdir()]
    if not all((folder / name).exists() for name in beside_of(names)):
        return False

    def index(name: str) -> list[str]:
        return model_files.index_files(folder / name) if (folder / name).exists() else []

    wanted = weights_of(names, index)
    return bool(wanted) and all((folder / name).exists() for name in wanted)


def usable(
    asked: Asked, folder: Path, commit: str, store: StageStore, reporter: Reporter
) -> Fetched:
    """A snapshot as a model folder with safetensors."""
    pickles = bin_weights.files_of(folder)
    if not pickles:
        return Fetched(folder, commit)
    inputs = _inputs(asked.repo, commit)
    path = bin_weights.as_folder(
        pickles, store, inputs, lambda text: reporter.say(f"{asked.words}: {text}")
    )
    remember(asked, commit, store)
    return Fetched(path, commit)


def _inputs(repo: str, commit: str) -> dict[str, Any]:
    """What a converted model is known by: a commit is content, and outlives the pickles."""
    return {"hub": repo, "commit": commit, "converter": bin_weights.CONVERTER}


def _commits(asked: Asked, store: StageStore) -> list[str]:
    """The commits that a revision meant when it was last asked for: the cache's word, then ours."""
    revision = asked.revision or MAIN
    if COMMIT.fullmatch(revision):
        return [revision]
    commits = []
    reference = _cached_repository(asked.repo) / "refs" / revision
    if reference.is_file():
        commits.append(reference.read_text(encoding="utf-8").strip())
    noted = _noted(asked.repo, store).get(revision)
    return [*commits, noted] if noted and noted not in commits else commits


def remember(asked: Asked, commit: str, store: StageStore) -> None:
    """Note what a name meant, for the day when the hub's cache is gone."""
    before = _noted(asked.repo, store)
    revision = asked.revision or MAIN
    if before.get(revision) != commit and not COMMIT.fullmatch(revision):
        note = _note(asked.repo, store)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, before | {revision: commit})


def _noted(repo: str, store: StageStore) -> dict[str, str]:
    """Revision -> commit; none where there is no note, or half of one."""
    try:
        noted = read_json(_note(repo, store))
    except (FileNotFoundError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _note(repo: str, store: StageStore) -> Path:
    return store.root / "hub" / f"{repo.replace('/', '--')}.json"


def _cached_repository(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def snapshot(repo: str, commit: str) -> Path:
    """Where the hub's cache keeps a repository's files of one commit."""
    return _cached_repository(repo) / "snapshots" / commit


def is_as_listed(path: Path, hashes: Mapping[str, str]) -> bool:
    """Whether a file has the sha256 that the hub names, or that the cache has named it by."""
    blob = path.resolve()
    if not blob.exists():
        return False
    expected = hashes.get(path.name) or blob.name
    if not SHA256.fullmatch(expected):
        return True  # a small file, which git keeps and the hub names no sha256 for
    status = blob.stat()
    return _sha256(blob, status.st_size, status.st_mtime_ns) == expected


@cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Of one file, once a process: a table of twenty rows asks for its model twenty times."""
    return file_sha256(path)


def forget(path: Path) -> None:
    """Remove a damaged file from the cache, so that it is fetched again."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
