"""Data sets of the Hugging Face hub by their commit, with a network or from its cache.

What is read is pinned to one commit a process: numbers on the old and the new labels of a data set
that changes meanwhile never meet in one record.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trinity.harness.hub.failures import SILENT, Asked, Reason, failure_of, patiently
from trinity.methods.errors import MachineError, TrinityError

if TYPE_CHECKING:
    from trinity.harness.terminal.progress import Reporter

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0
OFF = "HF_HUB_OFFLINE forbids asking the hub: unset it."


def hub_is_off() -> bool:
    """Whether HF_HUB_OFFLINE forbids the hub, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class _Answer:
    """What the hub says of a data set.

    sha: None if it says none   reason, why: in words, and the error that it came as
    """

    sha: str | None = None
    reason: str = ""
    why: Exception | None = None


def commit(dataset: str, file: str | None = None) -> str:
    """The commit of a data set that is read now: the hub's newest, or where the hub does not answer
    the one that was read last; MachineError says why there is none, or what the hub refuses.

    file: the one that is read, if it is not the whole data set
    """
    answer = _Answer(reason=OFF) if hub_is_off() else asked_once(dataset)
    if answer.sha:
        return answer.sha
    reason, why = answer.reason, answer.why
    if isinstance(why, TrinityError) and not _is_passed_over(why):
        raise MachineError(reason) from why  # the name is a task's or a text's, no input of a user
    kept = cached_commit(dataset, file)
    if kept is None:
        msg = f"data set {dataset}: is not in the cache of this machine. {reason}"
        if isinstance(why, TrinityError):  # it names the data set by itself
            msg = f"{reason} The cache of this machine does not hold it either."
        raise MachineError(msg) from why
    level = logging.INFO if hub_is_off() else logging.WARNING
    log.log(level, "data set %s: commit %s from the cache; %s", dataset, kept, reason)
    return kept


@cache
def asked_once(dataset: str) -> _Answer:
    """The hub's word on a data set, the same for all of a process, whichever file is read."""
    # Imported here: a run on local data never asks the hub.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    def ask() -> str | None:
        found: str | None = HfApi().dataset_info(dataset, timeout=_PATIENCE_S).sha
        return found

    try:
        found = patiently(ask, Asked(dataset, kind="dataset"), log.warning)
    except TrinityError as error:
        return _Answer(reason=str(error), why=error)
    except (HTTPError, OSError) as error:
        words = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}."
        return _Answer(reason=words, why=error)
    return _Answer(found, "the hub names no commit.")


def _is_passed_over(error: TrinityError) -> bool:
    """Whether the cache may stand in: the hub is silent or busy, and refuses nothing."""
    found = failure_of(error)
    return found is None or found.reason in SILENT | {Reason.RATE}


@dataclass(frozen=True, eq=False)
class Read:
    """rows: a `datasets` table (it has no type of ours)   source: the data set and its commit"""

    rows: Any
    source: str


def load(path: str, **arguments: Any) -> Read:
    """Rows of a data set at the commit of this process; MachineError says why there are none.

    arguments: of `datasets.load_dataset`, a split among them
    """
    # Imported here: it takes seconds, and only a data set that no file here holds needs it.
    import datasets

    sha = commit(path)

    def read() -> Any:
        return datasets.load_dataset(path, **arguments, revision=sha)

    with refusals(path):
        rows = patiently(read, Asked(path, sha, "dataset"), log.warning)
    check_commit(path, sha, rows)
    return Read(rows, source(path, sha))


def fetch(dataset: str, file: str, reporter: "Reporter | None" = None) -> tuple[Path, str]:
    """One file of a data set at the commit of this process, and the record's words for it.

    reporter: told how far the download is
    """
    from huggingface_hub import hf_hub_download

    from trinity.harness.hub import downloads
    from trinity.harness.terminal.progress import Reporter

    bars = downloads.bars(f"fetch {dataset}, MB", None, reporter or Reporter(quiet=True))
    sha = commit(dataset, file)

    def read() -> str:
        return str(
            hf_hub_download(dataset, file, repo_type="dataset", revision=sha, tqdm_class=bars)
        )

    with refusals(dataset):
        path = patiently(read, Asked(dataset, sha, "dataset"), log.warning)
    return Path(path), source(dataset, sha)


def source(dataset: str, sha: str) -> str:
    """A record's words for a data set of the hub."""
    return f"huggingface.co/datasets/{dataset}, commit {sha}"


@contextmanager
def refusals(dataset: str) -> Iterator[None]:
    """MachineError in place of all that `datasets` and the hub's client raise."""
    import datasets
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (
        HTTPError,
        OSError,
        ValueError,
        RuntimeError,  # of a data set that is a script
        datasets.exceptions.DatasetsError,
    ) as error:
        reason = str(error).strip().partition("\n")[0] or "no message"
        msg = f"data set {dataset}: could not be read ({type(error).__name__}: {reason})."
        raise MachineError(msg) from error


def check_commit(dataset: str, sha: str, rows: Any) -> None:
    """MachineError if `datasets` took another commit from its cache, as it does without a word
    where the hub does not answer.
    """
    found = {Path(file["filename"]).parent.name for file in getattr(rows, "cache_files", ())}
    if found - {sha}:
        msg = (
            f"data set {dataset}: commit {sha} was asked for, and the cache gave "
            f"{', '.join(sorted(found))}. Let this machine reach the hub, or remove the data set "
            f"from the cache of `datasets`."
        )
        raise MachineError(msg)


def cached_commit(dataset: str, file: str | None = None) -> str | None:
    """The commit that would be read without a network, the newest in the cache."""
    folders = _tables(dataset) if file is None else _snapshots(dataset, file)
    newest = max(folders, key=lambda p: (p.stat().st_mtime, p.name), default=None)
    return newest.name if newest else None


def _tables(dataset: str) -> list[Path]:
    """Folders of `datasets`' own cache: `<owner>___<name>/<config>/<version>/<commit>`."""
    # Imported here: it takes seconds, and only a data set that no file here holds needs it.
    import datasets

    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    found = root.glob(f"{_folder_name(dataset)}/*/*/*")
    # Beside whole ones lie those of killed downloads, `<commit>.incomplete`.
    return [path for path in found if path.is_dir() and not path.suffix]


def _snapshots(dataset: str, file: str) -> list[Path]:
    """Folders of the hub's cache that hold a file, each called by its commit."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=dataset, repo_type="dataset")
    root = Path(constants.HF_HUB_CACHE).expanduser() / folder / "snapshots"
    return [p for p in root.glob("*") if (p / file).is_file()]


def obtainable(dataset: str, file: str | None = None) -> bool:
    """Whether a data set, or one file of it, is in the cache or on a hub that answers."""
    try:
        commit(dataset, file)
    except MachineError as error:
        log.log(logging.INFO if hub_is_off() else logging.WARNING, "%s", error)
        return False
    return True


def _folder_name(dataset: str) -> str:
    """'allenai___winogrande' of 'allenai/winogrande', as `datasets` calls it."""
    from datasets.naming import camelcase_to_snakecase

    *owner, name = dataset.split("/")
    return "___".join([*owner, camelcase_to_snakecase(name)])
