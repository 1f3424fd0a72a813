"""Single bits that flip on disk: found, or without effect; never a number that silently differs."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.faults import jobs, processes
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.models.folders import is_compressed
from trinity.harness.recipes.recipe import EvaluateSpec, LowerSpec, ModelSpec
from trinity.harness.records import record
from trinity.harness.runs import lowered
from trinity.harness.runs.requests import Evaluation
from trinity.harness.store import stages, sums
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import TrinityError

FLIPS = 50 * processes.TIMES  # of each of four kinds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small run leaves."""
    place = tmp_path_factory.mktemp("made") / "run"
    jobs.make_data(place / "data")
    processes.whole(place, jobs.smoke, place, jobs.TRAINED)
    return place


def _flipped(files: list[Path], rng: random.Random, read: Callable[[Path], None]) -> None:
    """Flip a bit of one of the files, larger ones as often as small ones; then put it back."""
    path = rng.choice(files)
    content = path.read_bytes()
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
    try:
        read(path)
    finally:
        path.write_bytes(content)


def test_flips_in_stages_are_found_or_in_what_nobody_reads(made: Path) -> None:
    rng, found = random.Random(processes.SEED), 0
    store = made / "store"
    files = [
        path
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] not in processes.OUR_OWN
    ]
    for _ in range(FLIPS):

        def read(path: Path) -> None:
            nonlocal found
            place = path if path.is_dir() else path.parent
            while not (place / stages.MANIFEST).exists():
                place = place.parent
            damage = stages.damage(place)
            # Of the manifest, only what it says of files is read: a key has the rest.
            assert damage is not None or path.name == stages.MANIFEST
            found += damage is not None

        _flipped(files, rng, read)
    print(f"{found} of {FLIPS} flips in stages found")


def test_a_run_on_a_store_with_flips_ends_with_the_same_bytes(made: Path, tmp_path: Path) -> None:
    rng, expected = random.Random(processes.SEED), processes.left(made)
    for number in range(3 * processes.TIMES):
        place = tmp_path / str(number)
        jobs.make_data(place / "data")
        shutil.copytree(made / "store", place / "store")
        for path in sorted((place / "store").rglob("*.safetensors")):
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        processes.whole(place, jobs.smoke, place, jobs.TRAINED)
        assert processes.left(place) == expected


def test_flips_in_a_checkpoint_are_found(made: Path) -> None:
    rng, folder = random.Random(processes.SEED), made / "compressed"
    before = Checkpoint.open(folder).load_model().state_dict()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]

    def read(path: Path) -> None:
        try:
            # Of a folder that calls itself another thing now, something else is read, and fails.
            assert is_compressed(folder) or path.name == "config.json"
            after = Checkpoint.open(folder).load_model().state_dict()
        except TrinityError:
            return
        assert all(torch.equal(before[name], after[name]) for name in before), path

    for _ in range(FLIPS):
        _flipped(files, rng, read)


def test_flips_in_a_module_and_its_parameters_are_found_before_it_is_loaded(
    tmp_path: Path,
) -> None:
    rng = random.Random(processes.SEED)
    for name in ("module.vmfb", "module.json", "parameters.safetensors", "lowered.json"):
        (tmp_path / name).write_bytes(rng.randbytes(500))
    sums.write(tmp_path)
    suites = EvaluateSpec.model_validate({"suites": ["perplexity-pydoc"]})
    asked = Evaluation(ModelSpec(id=str(tmp_path)), suites, LowerSpec(target="llvm-cpu"))

    def read(path: Path) -> None:
        with pytest.raises(TrinityError, match="is damaged"):
            lowered.evaluate(asked, Reporter(quiet=True))

    files = sorted(tmp_path.iterdir())
    for _ in range(FLIPS):
        _flipped(files, rng, read)


def test_flips_in_a_record_are_found_or_without_effect(made: Path) -> None:
    rng = random.Random(processes.SEED)
    files = [p for p in sorted((made / "results" / "v1").rglob("*.json"))]
    before, refused = record.read(files[0]), 0

    def read(path: Path) -> None:
        nonlocal refused
        try:
            assert record.read(path) == before
        except TrinityError:
            refused += 1

    for _ in range(FLIPS):
        _flipped(files, rng, read)
    assert refused > FLIPS / 2
    print(f"{refused} of {FLIPS} flips in a record found, the others without effect")
