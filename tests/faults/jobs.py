"""What the processes of these tests do: a small run of everything that writes."""

import gzip
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from trinity.harness import cli
from trinity.harness.recipes import recipe
from trinity.harness.records import record
from trinity.harness.runs import outputs
from trinity.harness.runs.attempts import attempt
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import TrinityError

WORDS = "a stage is there whole or it is not there at all "
SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"id": "random:tiny-llama"},
    "compress": {"steps": [{"method": "gptq", "bits": 4, "group_size": 64}]},
    "calibration": {"dataset": "wikitext2", "samples": 2, "seqlen": 32},
    "evaluate": {"suites": [{"suite": "perplexity-wikitext2", "seqlen": 32, "windows": 2}]},
}
TRAINING = {"steps": 2, "batch": 1, "seqlen": 16, "pattern": "2:4", "dataset": "wikitext2"}
TRAINED = {**SMALL, "name": "trained"}
TRAINED["model"] = {"id": "trained:tiny-llama", "training": TRAINING}
LOWERED = {**SMALL, "name": "lowered", "lower": {"target": "llvm-cpu", "length": 16, "context": 64}}


def make_data(folder: Path) -> None:
    """A text of a few lines, as the folder of TRINITY_DATA_DIR holds it."""
    for split in ("train", "test"):
        place = folder / "wikitext-2-raw" / f"{split}.jsonl.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = "".join(json.dumps({"text": WORDS * 8 + split}) + "\n" for _ in range(4))
        place.write_bytes(gzip.compress(rows.encode(), mtime=0))


def smoke(place: Path, data: dict[str, Any]) -> None:
    """Train, compress, lower where asked, evaluate, record, export: what is there already stays.

    place: data, store, results and folders are in it   data: a recipe
    """
    torch.set_num_threads(1)
    os.environ["TRINITY_DATA_DIR"] = str(place / "data")
    os.environ["TRINITY_CACHE"] = str(place / "store")
    asked, reporter = recipe.parse(data, "test"), Reporter(quiet=True)
    store = StageStore(place / "store")
    with attempt(asked, place / "results", store):
        finished = Run(asked, store, reporter).finish()
    record.write(finished.record, place / "results")
    if not (place / "compressed").exists():
        outputs.compress_to(asked, place / "compressed", store, reporter)
    if not (place / "exported").exists():
        outputs.export_to(place / "compressed", "gptq", place / "exported")
    if asked.lower and not (place / "lowered").exists():
        folder = place / "compressed"
        outputs.lower_to(folder, asked.lower, None, place / "lowered", store, reporter)


def command(words: list[str], cache: Path) -> None:
    """A command, as its process does it from `main` on.  cache: its TRINITY_CACHE"""
    os.environ["TRINITY_CACHE"] = str(cache)
    sys.argv = ["trinity", *words]
    cli.main()


def not_called(folder: Path) -> None:
    """Fill a stage that nobody may make."""
    raise AssertionError(folder)


def quietly(said: Path, job: Any, *arguments: Any) -> None:
    """Do a job with its output in a file; a TrinityError ends with its exit code, as in a command.

    said: the file, with the error's paragraph at the end
    """
    stream = said.open("w", encoding="utf-8")
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    try:
        job(*arguments)
    except TrinityError as error:
        print(f"trinity: {error}", file=stream, flush=True)
        sys.exit(error.exit_code)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc(file=stream)
        stream.flush()
        os._exit(99)
