"""Inputs that are almost right: valid files with something changed, by a seed, read by what reads
them.  A reader ends with a value or an error of ours, soon, in bounded memory.
"""

import contextlib
import gzip
import json
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from tests.faults import jobs
from trinity.harness.audit import audit
from trinity.harness.audit.where import located
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.compress.imported import stored_tensors
from trinity.harness.models import torch_files
from trinity.harness.models.decoder import Decoder
from trinity.harness.models.folders import lowered_facts
from trinity.harness.models.model_files import WeightReader
from trinity.harness.recipes import paper, recipe
from trinity.harness.records import record
from trinity.harness.runs import attempts
from trinity.harness.store import stages, sums
from trinity.harness.texts import jsonl
from trinity.harness.tracking import policy
from trinity.methods import registry
from trinity.methods.errors import TrinityError

SECONDS, MEMORY = 20, 3 << 30  # of one case; of address space, beyond what is loaded
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1 << 31, 1 << 63, 10**30, -(1 << 40)),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
    *("", " ", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "é" * 3, "x" * 5000),
    *([], {}, [[]], {"": {}}, [None] * 50, {"a": {"b": {"c": 1}}}),
)
TOKENS = (b"\0", b"\xff", b"{", b"}", b"[", b"]", b'"', b":", b",", b"-", b"9" * 30, b"1e999")
TOKENS += (b"NaN", b"&a ", b"*a", b"!!python/object/apply:os.system ", b"\n", b"\t", b"[" * 3000)


def changed_bytes(content: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """Bytes with one to three changes.  within: only this many at the start"""
    for _ in range(rng.randint(1, 3)):
        end = max(1, min(len(content), within or len(content)))
        at, size = rng.randrange(end), min(rng.choice((1, 1, 4, 8, 64)), end)
        kind = rng.randrange(6)
        part: bytes
        if kind == 0:
            part = bytes(rng.randrange(256) for _ in range(size))
        elif kind == 1:
            part = b""
        elif kind == 2:
            part, size = rng.choice(TOKENS), 0
        elif kind == 3:
            part = content[at : at + size] * 2
        elif kind == 4:
            part = rng.choice((0, 1, 255, 1 << 31, (1 << 64) - 1)).to_bytes(8, "little")
            size = 8
        else:
            return content[:at]
        content = content[:at] + part + content[at + size :]
    return content


def changed_tree(data: Any, rng: random.Random) -> Any:
    """Plain data with one to three values or keys changed."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        _collect(data, places)
        if not places:
            return rng.choice(ODD)
        owner, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0 and isinstance(owner, dict):
            owner[rng.choice(("", "odd", str(key) + "s", "a" * 300))] = owner.pop(key)
        elif kind == 1:
            del owner[key]
        elif kind == 2:
            other, name = rng.choice(places)
            owner[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
        else:
            owner[key] = deepcopy(rng.choice(ODD))
    return data


def _collect(data: Any, places: list[tuple[Any, Any]]) -> None:
    for key in _keys(data):
        places.append((data, key))
        _collect(data[key], places)


def _keys(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return list(data)
    return list(range(len(data))) if isinstance(data, list) else []


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON, changed in its tree or in its text."""
    if rng.random() < 0.3:
        return changed_bytes(content, rng)
    return json.dumps(changed_tree(json.loads(content), rng)).encode("utf-8", "replace")


def changed_yaml(content: bytes, rng: random.Random) -> bytes:
    """The same of YAML."""
    if rng.random() < 0.5:
        return changed_bytes(content, rng)
    data = changed_tree(yaml.safe_load(content), rng)
    return yaml.safe_dump(data, sort_keys=False).encode("utf-8", "replace")


def changed_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A header whose tree or bytes are changed, its length right or not."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.4:
        return changed_bytes(content, rng, 8 + size)
    header = changed_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


Change = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """Files to change, by glob in a folder that is made once, and what reads the folder.

    of: which folder of `make`
    """

    of: str
    files: tuple[tuple[str, Change], ...]
    read: Callable[[Path], object]


def _load(name: str, folder: Path) -> None:
    source = registry.get(name)
    source.load(stored_tensors(folder), registry.configure(name, {}))  # type: ignore[union-attr]


def _paper(folder: Path) -> None:
    with contextlib.suppress(*paper.UNREADABLE):  # `load` says of which plugin it is
        paper._read(folder / "paper.yaml")


def _weights(folder: Path) -> None:
    reader = WeightReader(folder)
    for name in reader.entries:
        reader.read(name)


def _decoder(folder: Path) -> None:
    Decoder(folder, torch.float32, torch.device("cpu")).check_weights()


TARGETS = {
    "recipe": Target(
        "texts", (("recipe.yaml", changed_yaml),), lambda f: recipe.read(f / "recipe.yaml", [])
    ),
    "policy": Target(
        "texts", (("gate.yaml", changed_yaml),), lambda f: policy.read(f / "gate.yaml")
    ),
    "paper": Target("texts", (("paper.yaml", changed_yaml),), _paper),
    "record": Target(
        "texts", (("record.json", changed_json),), lambda f: record.read(f / "record.json")
    ),
    "attempt": Target("texts", (("attempts/*.json", changed_json),), attempts.read_all),
    "lowered.json": Target("texts", (("lowered.json", changed_json),), lowered_facts),
    "rows": Target(
        "texts",
        (
            ("rows.gz", changed_bytes),
            ("rows.gz", lambda c, r: gzip.compress(changed_bytes(gzip.decompress(c), r))),
        ),
        lambda f: list(jsonl.rows(jsonl.opened(f / "rows.gz"), f / "rows.gz")),
    ),
    "config.json": Target("model", (("config.json", changed_json),), _decoder),
    "header": Target("model", (("*.safetensors", changed_safetensors),), _weights),
    "trinity.json": Target(
        "compressed",
        (
            ("trinity.json", changed_json),
            ("config.json", changed_json),
            ("*.index.json", changed_json),
        ),
        lambda f: Checkpoint.open(f).load_model(),
    ),
    "gptq": Target(
        "exported",
        (("*config.json", changed_json), ("*.safetensors", changed_safetensors)),
        lambda f: _load("gptq-checkpoint", f),
    ),
    "audit": Target(
        "exported",
        (
            ("*config.json", changed_json),
            ("*.safetensors", changed_safetensors),
            ("*.index.json", changed_json),
        ),
        lambda f: audit.audit(located(f)),
    ),
    "slope": Target(
        "trained",
        (("*.pt", changed_bytes),),
        lambda f: torch_files.only_tensors("x", torch_files.read(next(f.glob("*.pt")), "x")),
    ),
    "gguf": Target(
        "gguf",
        (("*.gguf", lambda c, r: changed_bytes(c, r, 700)),),
        lambda f: audit.audit(located(f)),
    ),
    "stage": Target("stage", (("stage.json", changed_json),), stages.damage),
}


def make(of: str, folder: Path, smoke: Path) -> None:
    """Whole files to change.  smoke: what a small run left"""
    from tests.harness.audit import written

    if of == "gguf":
        folder.mkdir()
        written.gguf(folder / "model.gguf")
    elif of == "model":
        (found,) = [p for p in smoke.glob("store/model/??/*") if not (p / "training.json").exists()]
        shutil.copytree(found, folder)
    elif of == "trained":
        shutil.copytree(next(smoke.glob("store/trained/??/*")), folder)
    elif of == "stage":
        shutil.copytree(next(smoke.glob("store/block/??/*")), folder)
    elif of == "texts":
        folder.mkdir()
        root = Path(__file__).parents[2]
        (folder / "recipe.yaml").write_text(yaml.safe_dump(jobs.LOWERED), encoding="utf-8")
        shutil.copyfile(root / "gate.yaml", folder / "gate.yaml")
        shutil.copyfile(root / "harness" / "papers" / "wanda.yaml", folder / "paper.yaml")
        shutil.copyfile(next(smoke.glob("results/v1/*/*/*.json")), folder / "record.json")
        shutil.copytree(smoke / "results" / "attempts", folder / "attempts")
        shutil.copyfile(next(smoke.glob("data/*/train.jsonl.gz")), folder / "rows.gz")
        facts = {"target": "llvm-cpu", "checkpoint": {"name": "x"}, "vocabulary": 9}
        stages.write_json(folder / "lowered.json", facts | {"logit_errors": {"decode": 0.1}})
    else:
        shutil.copytree(smoke / of, folder, ignore=shutil.ignore_patterns(sums.SUMS))


class TooLongError(Exception):
    """A reader did not end."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def campaign(name: str, folder: Path, seeds: range, failures: Path) -> None:
    """Read a changed file for every seed; `failures` has one text for each that was no good.

    Runs in a process of its own, whose memory is bounded.  folder: of `make`, for this one alone
    """
    target = TARGETS[name]
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = used * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, _too_long)
    for seed in seeds:
        rng = random.Random(f"{name} {seed}")
        pattern, change = rng.choice(target.files)
        path = rng.choice(sorted(folder.glob(pattern)))
        before = path.read_bytes()
        path.write_bytes(change(before, rng))
        (failures / "now").write_text(f"{seed} {path.name}", encoding="utf-8")
        signal.alarm(SECONDS)
        try:
            target.read(folder)
        except TrinityError:
            pass
        except (Exception, SystemExit):
            text = f"{path.name}\n{traceback.format_exc()}"
            (failures / str(seed)).write_text(text, encoding="utf-8", errors="replace")
            shutil.copyfile(path, failures / f"{seed}.input")
        finally:
            signal.alarm(0)
            path.write_bytes(before)
