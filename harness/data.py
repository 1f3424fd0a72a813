"""Text by name: where it was found, and a hash of what it says.

Local files come first (`TRINITY_DATA_DIR/<folder>/<split>.jsonl.gz`), then the Hugging Face hub;
which of the two it was is in the corpus, and so in the record.  `pydoc` needs neither: it is the
English text that every Python installation carries.
"""

import gzip
import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trinity.harness.pydoc_text import split_topics
from trinity.methods.errors import ConfigError, MachineError, nearest

DATA_DIR = "TRINITY_DATA_DIR"


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer; Any is that library's border."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        """Text to a mapping with `input_ids`."""
        ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Ids to text."""
        ...


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """Documents of one split of one data set.

    source: where they were found, in words that name no user's folder
    sha256: over the documents, each preceded by its length in bytes; the same from disk and from
    the hub
    """

    name: str
    split: str
    documents: tuple[str, ...]
    source: str
    sha256: str


@dataclass(frozen=True)
class TextSource:
    """Where one named corpus lives.

    files: split -> stem of the local file, in `folder`
    hub: split -> arguments of `datasets.load_dataset`; none of them if the corpus is local only
    """

    folder: str
    field: str
    files: dict[str, str]
    hub: dict[str, dict[str, Any]]


_WIKITEXT = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"}

SOURCES = {
    "wikitext2": TextSource(
        folder="wikitext-2-raw",
        field="text",
        files={split: split for split in ("train", "validation", "test")},
        hub={split: _WIKITEXT | {"split": split} for split in ("train", "validation", "test")},
    ),
    # The shards that SparseGPT, GPTQ, Wanda and SLiM read, and no others.
    "c4": TextSource(
        folder="c4",
        field="text",
        files={"train": "train", "validation": "validation"},
        hub={
            split: {
                "path": "allenai/c4",
                "data_files": {split: f"en/c4-{split}.00000-of-{shards}.json.gz"},
                "split": split,
            }
            for split, shards in (("train", "01024"), ("validation", "00008"))
        },
    ),
    # Licensed (LDC) and on no hub that may be named: only what a reader owns and puts there.
    "ptb": TextSource(
        folder="ptb",
        field="text",
        files={split: split for split in ("train", "validation", "test")},
        hub={},
    ),
    "c4-sample": TextSource(folder="c4-sample", field="text", files={"train": "c4_sample"}, hub={}),
}
PYDOC = "pydoc"
PYDOC_SPLITS = ["train", "test"]


def names() -> list[str]:
    """Every corpus name."""
    return sorted([*SOURCES, PYDOC])


def load(name: str, split: str) -> TextCorpus:
    """Read a corpus; ConfigError for an unknown name or split, MachineError if it is nowhere."""
    _check(name, split)
    if name == PYDOC:
        source = f"pydoc_data.topics of Python {platform.python_version()}"
        return _corpus(name, split, split_topics()[split], source)
    source_of = SOURCES[name]
    found = local_file(source_of.folder, source_of.files[split])
    if found is not None:
        documents = _read_jsonl(found, source_of.field)
        return _corpus(name, split, documents, f"{DATA_DIR}/{source_of.folder}/{found.name}")
    return _from_hub(name, split, source_of)


def at_hand(name: str, split: str) -> str | None:
    """None if `load` needs no network, else one sentence that says what is missing."""
    _check(name, split)
    if name == PYDOC:
        return None
    source = SOURCES[name]
    if local_file(source.folder, source.files[split]) is not None:
        return None
    return (
        f"{name} ({split}) is not on this machine: {_looked_at(source.folder, source.files[split])}"
    )


def hub_is_off() -> bool:
    """Whether HF_HUB_OFFLINE forbids the hub, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def local_file(folder: str, stem: str) -> Path | None:
    """`TRINITY_DATA_DIR/<folder>/<stem>.jsonl.gz` if it exists."""
    root = os.environ.get(DATA_DIR)
    if not root:
        return None
    if not Path(root).is_dir():
        msg = (
            f"{DATA_DIR} is '{root}', which is not a folder. Set it to a folder that holds "
            "<name>/<split>.jsonl.gz files, or unset it to read data sets from the Hugging Face "
            "hub."
        )
        raise MachineError(msg)
    path = Path(root) / folder / f"{stem}.jsonl.gz"
    return path if path.is_file() else None


def token_ids(tokenizer: Tokenizer, text: str) -> Tensor:
    """The papers' `tokenizer(text).input_ids`, special tokens included.  ->  int64 [tokens]"""
    # verbose=False: no warning that a text is longer than the model's context; it is cut into
    # windows afterwards.
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def content_hash(parts: Iterable[str]) -> str:
    """sha256 over texts, each preceded by its length: moving a boundary changes it."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _check(name: str, split: str) -> None:
    if name not in names():
        msg = f"data set '{name}' is unknown.{nearest(name, names())} Known: {', '.join(names())}."
        raise ConfigError(msg)
    splits = PYDOC_SPLITS if name == PYDOC else list(SOURCES[name].files)
    if split not in splits:
        msg = (
            f"data set '{name}' has no split '{split}'.{nearest(split, splits)} Splits: "
            f"{', '.join(splits)}."
        )
        raise ConfigError(msg)


def _corpus(name: str, split: str, documents: Iterable[str], source: str) -> TextCorpus:
    kept = tuple(documents)
    return TextCorpus(name, split, kept, source, content_hash(kept))


def _read_jsonl(path: Path, field: str) -> list[str]:
    documents: list[str] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get(field), str):
                    msg = f"{path}, line {number}: expected an object with text under '{field}'."
                    raise ConfigError(msg)
                documents.append(row[field])
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = (
            f"{path}: not a gzip file of UTF-8 JSON lines ({error}). Replace the file or remove it."
        )
        raise ConfigError(msg) from error
    return documents


def _from_hub(name: str, split: str, source: TextSource) -> TextCorpus:
    where = _looked_at(source.folder, source.files[split])
    if split not in source.hub:
        msg = f"{name} ({split}): {where}, and this data set is on no hub."
        raise MachineError(msg)
    # Imported here: `datasets` takes seconds to import, and the command line must answer `--help`
    # in half of one.
    import datasets

    arguments = source.hub[split]
    try:
        rows = datasets.load_dataset(**arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        msg = (
            f"{name} ({split}): {where}, and the Hugging Face hub did not give {arguments['path']} "
            f"({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Put the file there, "
            "or allow this machine to reach huggingface.co (and unset HF_HUB_OFFLINE)."
        )
        raise MachineError(msg) from error
    return _corpus(name, split, rows[source.field], f"huggingface.co/datasets/{arguments['path']}")


def _looked_at(folder: str, stem: str) -> str:
    path = f"{DATA_DIR}/{folder}/{stem}.jsonl.gz"
    return (
        f"no {path}"
        if os.environ.get(DATA_DIR)
        else f"{DATA_DIR} is not set (it would hold {path[17:]})"
    )
