"""What every test shares: its own caches, no hub, one thread, the data beside the checkout.

The variables are set here, before any test module imports a Hugging Face library, because those
libraries read them once, when they are imported.
"""

import gc
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

_HF_HOME = Path(tempfile.mkdtemp(prefix="trinity-tests-hf-"))
# HF_HUB_OFFLINE=0 opts in to network tests; else what the user has of the hub changes no test.
if os.environ.get("HF_HUB_OFFLINE") != "0":
    for _name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_XET_CACHE"):
        os.environ.pop(_name, None)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(_HF_HOME)}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("TRINITY_CACHE_URL", None)  # a store of others

import pytest  # noqa: E402  the variables above come first
import torch  # noqa: E402  as above

_NUMBERS = count()
PROJECT_ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests that did not ask for one: they expect what a processor does."""
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr") or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure() -> None:
    """Remove the Hugging Face home of this run."""
    shutil.rmtree(_HF_HOME, ignore_errors=True)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: those of gzip hold the time, and workers that collect at
    different seconds would find different tests.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums depend on how they are split, so every test runs on one thread, on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiler runs once for a text and a command: `compiled_once.py`."""
    from tests.compiled_once import remembered
    from trinity.lowering.module import compile as compiling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "_run", remembered(compiling._run, tmp_path_factory))
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """A failing test fails again: torch's global generator starts every test at the same place."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_process() -> Iterator[None]:
    """The command line sets up the root logger and the signals of its process, here that of all
    tests: what it hides or takes, the next test would miss.
    """
    level, handlers = logging.root.level, logging.root.handlers[:]
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_vulkan_left_open() -> Iterator[None]:
    """A Vulkan device ends with the test that opened it.

    IREE keeps two threads waiting for each, on any of several semaphores, which Mesa's device on
    the CPU answers by polling: open, it takes two processors from every later test.
    """
    yield
    runtime = sys.modules.get("iree.runtime.system_setup")
    if runtime and runtime._GLOBAL_DEVICES_BY_URI.pop("vulkan", None):
        from trinity.lowering.module import check

        check.linear_module.cache_clear()  # its modules hold the device
        gc.collect()


@pytest.fixture(autouse=True)
def trinity_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """TRINITY_CACHE of this test alone: a folder that no other test sees, not there until it is
    written to.  (In `tmp_path` it would have every test make one, in a folder of thousands.)
    """
    folder = tmp_path_factory.getbasetemp() / "trinity-caches"
    folder.mkdir(exist_ok=True)
    cache = folder / str(next(_NUMBERS))
    monkeypatch.setenv("TRINITY_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout."""
    return PROJECT_ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout, with a small model and real data."""
    path = PROJECT_ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("missing: the folder `shared` beside the checkout (model and data)")
    return path


@pytest.fixture(scope="session")
def stories260k(shared_dir: Path) -> Path:
    """A real trained Llama of 260,032 parameters: a Hugging Face model directory."""
    path = shared_dir / "models" / "stories260K"
    if not (path / "model.safetensors").is_file():
        pytest.skip("missing: the model stories260K (models/stories260K in the folder `shared`)")
    return path


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """Local data sets, `<name>/<split>.jsonl.gz`: TRINITY_DATA_DIR, else `shared/data`."""
    named = os.environ.get("TRINITY_DATA_DIR")
    if named:
        path = Path(named)
        if not path.is_dir():
            pytest.fail(f"TRINITY_DATA_DIR is {named!r}, not a folder: correct or unset it")
        return path
    shared: Path = request.getfixturevalue("shared_dir")
    path = shared / "data"
    if not path.is_dir():
        pytest.skip("missing: real data sets (TRINITY_DATA_DIR, or data/ in the folder `shared`)")
    return path
