"""The hub as a fixture: huggingface_hub and datasets of this process talk to it and to no other.

Both libraries read HF_* when they are imported, so their own copies are set here too, and put back.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from tests.hub import contents
from tests.hub.server import FakeHub
from trinity.harness.hub import data_sets
from trinity.harness.repro import availability


def _ask_again() -> None:
    """What a process asks the hub once is asked again by the next test."""
    data_sets.asked_once.cache_clear()
    availability.hub_failure.cache_clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A filled hub that answers, and an empty cache for what is fetched from it."""
    served = FakeHub()
    contents.fill(served)
    use(served.url, tmp_path / "hf", monkeypatch)
    _ask_again()
    yield served
    served.close()
    close_session()
    _ask_again()


def use(url: str, home: Path, monkeypatch: pytest.MonkeyPatch, *, offline: bool = False) -> None:
    """Point the libraries of this process at a hub and a cache."""
    import datasets.config
    from huggingface_hub import constants

    for name, value in environment(url, home, offline=offline).items():
        monkeypatch.setenv(name, value)
    # The user's own token, data and proxy have no say here.
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRINITY_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    close_session()


def environment(url: str, home: Path, *, offline: bool = False) -> dict[str, str]:
    """The variables that point another process at a hub and a cache."""
    return {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
