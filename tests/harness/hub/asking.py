"""What tests of the hub ask with."""

import pytest

from tests.hub.server import FakeHub
from trinity.harness.sources.sources import resolve
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import TrinityError

OPT = "facebook/opt-125m"
GATED = "meta-llama/Llama-2-7b-hf"


class Listener(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, name: str, done: int, total: int) -> None:
        self.said.append(f"{name} {done}/{total}")


def refused(store: StageStore, repo: str, revision: str | None = None) -> TrinityError:
    with pytest.raises(TrinityError) as caught:
        resolve(repo, revision, store)
    assert "\n" not in str(caught.value)
    return caught.value


def files_of(hub: FakeHub, repo: str) -> dict[str, bytes]:
    held = hub.repositories["models", repo]
    return dict(held.commits[held.branches["main"]])


def hub_folder(repo: str) -> str:
    return f"models--{repo.replace('/', '--')}"
