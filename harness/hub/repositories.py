"""Models of the Hugging Face hub: what is fetched of a repository, and where it lies afterwards.

Downloads lie in the hub's own cache (HF_HOME), where other programs find them too.  Of a model's
weights one form is fetched: safetensors, else the pickles `pytorch_model*.bin`, which are converted
once into our store; a model that was converted is found there when its pickles are gone.
"""

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trinity.harness.hub import cache as hub_cache
from trinity.harness.hub.cache import MAIN, Fetched
from trinity.harness.hub.data_sets import hub_is_off
from trinity.harness.hub.downloads import MEGABYTE, bars
from trinity.harness.hub.failures import SILENT, Asked, Reason, failure_of, patiently
from trinity.harness.models import model_files
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, MachineError

TIMEOUT_S = 20


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit: sizes in bytes, and sha256 where the hub knows it."""

    commit: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


def fetch(
    repo: str,
    revision: str | None,
    store: StageStore,
    reporter: Reporter,
) -> Fetched:
    """A model of the hub, from the cache, the store or the network, its hashes checked.

    One commit for all that one command does: a branch that moves meanwhile mixes no rows.
    """
    return _fetched(Asked(repo, revision), store, reporter)


@cache
def _fetched(asked: Asked, store: StageStore, reporter: Reporter) -> Fetched:
    _check_id(asked)
    if hub_is_off():
        return _kept(asked, store)
    if found := hub_cache.known(asked, store):
        return found  # a commit never changes: there is nothing to ask
    try:
        listing = list_files(asked, reporter)
    except MachineError as error:
        found = hub_cache.find(asked, store) if is_silent(error) else None
        if found is None:
            raise
        reporter.say(
            f"{asked.words}: the hub does not answer; using commit {found.commit[:12]}, which was "
            f"fetched before"
        )
        return found
    if found := hub_cache.converted(asked, listing.commit, store):
        hub_cache.remember(asked, listing.commit, store)
        return found
    folder = _download(asked, listing, reporter)
    return hub_cache.usable(asked, folder, listing.commit, store, reporter)


def list_files(asked: Asked, reporter: Reporter) -> Listing:
    """A repository's files at the commit that a revision names now."""
    # Imported here: it takes half a second that only talking to the hub needs.
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().repo_info(
            asked.repo,
            repo_type=asked.kind,
            revision=asked.revision or MAIN,
            files_metadata=True,
            timeout=TIMEOUT_S,
        )

    info = patiently(ask, asked, reporter.say)
    sizes = {item.rfilename: int(item.size or 0) for item in info.siblings or []}
    hashes = {item.rfilename: item.lfs.sha256 for item in info.siblings or [] if item.lfs}
    return Listing(info.sha, sizes, hashes)


def check(asked: Asked, store: StageStore, reporter: Reporter) -> None:
    """Raise what a fetch would raise, for the price of one small request."""
    if hub_is_off():
        _kept(asked, store)
        return
    from huggingface_hub import HfApi

    try:
        patiently(lambda: HfApi().auth_check(asked.repo, repo_type=asked.kind), asked, reporter.say)
    except MachineError as error:
        failure = failure_of(error)
        if failure is not None and failure.reason is Reason.OTHER:
            list_files(asked, reporter)  # a mirror need not know this question
        elif not is_silent(error) or hub_cache.find(asked, store) is None:
            raise


def config_folder(asked: Asked, store: StageStore, reporter: Reporter) -> Path:
    """A folder with the model's config.json, which is small; its weights may be elsewhere."""
    if found := hub_cache.find(asked, store):
        return found.folder
    from huggingface_hub import hf_hub_download

    def ask() -> str:
        return str(hf_hub_download(asked.repo, "config.json", revision=asked.revision or MAIN))

    return Path(patiently(ask, asked, reporter.say)).parent


def bytes_to_fetch(asked: Asked, store: StageStore, reporter: Reporter) -> int:
    """What a model costs to fetch; 0 where it is on this machine."""
    if hub_is_off():
        return 0
    try:
        listing = list_files(asked, reporter)
    except MachineError as error:
        if is_silent(error) and hub_cache.find(asked, store):
            return 0
        raise
    if hub_cache.converted(asked, listing.commit, store):
        return 0
    wanted = _wanted(asked, listing, reporter)
    here = hub_cache.snapshot(asked.repo, listing.commit)
    return sum(listing.sizes[name] for name in wanted if not (here / name).exists())


def _wanted(asked: Asked, listing: Listing, reporter: Reporter) -> list[str]:
    from huggingface_hub import hf_hub_download

    def index(name: str) -> list[str]:
        def ask() -> str:
            return str(hf_hub_download(asked.repo, name, revision=listing.commit))

        return model_files.index_files(Path(patiently(ask, asked, reporter.say)))

    weights = hub_cache.weights_of(listing.sizes, index)
    absent = [name for name in weights if name not in listing.sizes]
    if not weights or absent:
        held = ", ".join(sorted(n for n in listing.sizes if not n.endswith(".md"))[:8])
        lacks = f"the index names {absent[0]}, which is not there" if absent else "none of them"
        msg = (
            f"{asked.words}: expected model.safetensors or pytorch_model.bin, whole or in shards, "
            f"found {lacks} (it holds {held}). Take a revision or a repository that has them."
        )
        raise ConfigError(msg)
    return [*hub_cache.beside_of(listing.sizes), *weights]


def _download(asked: Asked, listing: Listing, reporter: Reporter) -> Path:
    """The snapshot folder with all that is wanted, whole and with the hashes that the hub names."""
    from huggingface_hub import snapshot_download

    wanted = _wanted(asked, listing, reporter)
    folder = hub_cache.snapshot(asked.repo, listing.commit)
    size = sum(listing.sizes[name] for name in wanted if not (folder / name).exists())
    _check_room(asked, size)
    patterns = [re.sub(r"([\[?*])", r"[\1]", name) for name in wanted]

    def get() -> str:
        return str(
            snapshot_download(
                asked.repo,
                # By name, so that the cache remembers which commit it meant.
                revision=asked.revision or MAIN,
                allow_patterns=patterns,
                tqdm_class=bars(f"fetch {asked.repo}, MB", size, reporter),
            )
        )

    start, wrong = time.monotonic(), list[str]()
    for damaged_before in (False, True):
        folder = Path(patiently(get, asked, reporter.say))
        if folder.name != listing.commit:
            # The branch moved in between.
            return _download(asked, list_files(asked, reporter), reporter)
        wrong = [
            name for name in wanted if not hub_cache.is_as_listed(folder / name, listing.sha256)
        ]
        if not wrong:
            _say_fetched(asked, size, time.monotonic() - start, reporter)
            return folder
        for name in wrong:
            hub_cache.forget(folder / name)
        if not damaged_before:
            reporter.say(f"{asked.words}: {', '.join(wrong)} came damaged; fetching again")
    msg = (
        f"{asked.words}: {', '.join(wrong)} came twice with other bytes than the hub's sha256 "
        f"says. Something on the way changes them: a proxy, a mirror (HF_ENDPOINT) or this "
        f"machine's memory or disk."
    )
    raise MachineError(msg)


def _say_fetched(asked: Asked, size: int, seconds: float, reporter: Reporter) -> None:
    if size:
        rate = size / MEGABYTE / max(seconds, 1e-3)
        reporter.say(
            f"fetched {asked.repo}: {size / MEGABYTE:.1f} MB in {seconds:.0f} s ({rate:.1f} MB/s)"
        )


def _check_room(asked: Asked, size: int) -> None:
    """MachineError before the download, if the disk has no room for it."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        msg = (
            f"{asked.words}: needs {size / 1e9:.2f} GB, and {place} has {free / 1e9:.2f} GB free. "
            f"Make room, or set HF_HOME to a folder on a larger disk."
        )
        raise MachineError(msg)


def _check_id(asked: Asked) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(asked.repo)
    except HFValidationError as error:
        msg = (
            f"{asked.words}: there is no such folder here, and a hub id is NAME or OWNER/NAME, "
            f"each of letters, digits, '-', '_' and single '.' within, 96 characters at most."
        )
        raise ConfigError(msg) from error


def is_silent(error: BaseException) -> bool:
    """Whether an error says that the hub does not answer at all."""
    found = failure_of(error)
    return found is not None and found.reason in SILENT


def _kept(asked: Asked, store: StageStore) -> Fetched:
    """A model without the network; MachineError that says how to get it."""
    found = hub_cache.find(asked, store)
    if found is None:
        from huggingface_hub import constants

        msg = (
            f"{asked.words}: is no folder here, HF_HUB_OFFLINE forbids the hub, and its cache "
            f"{constants.HF_HUB_CACHE} does not hold revision '{asked.revision or MAIN}' whole. "
            f"Run `trinity fetch {asked.repo}` where there is a network, with the same HF_HOME, or "
            f"unset HF_HUB_OFFLINE."
        )
        raise MachineError(msg)
    return found
