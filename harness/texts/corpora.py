"""Text by name: where it was found, and a hash of what it says.

Local files come first (`TRINITY_DATA_DIR/<folder>/<split>.jsonl.gz`), then the Hugging Face hub;
which of the two it was is in the corpus, and so in the record.  `pydoc` needs neither: it is the
English text that every Python installation carries.
"""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trinity.harness.hub import data_sets
from trinity.harness.texts import jsonl
from trinity.harness.texts.pydoc_text import split_topics
from trinity.methods.errors import ConfigError, MachineError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from trinity.harness.terminal.progress import Reporter

DATA_DIR = "TRINITY_DATA_DIR"
BLANK_LINE = "\n\n"  # between documents, as the papers join them


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

    def __hash__(self) -> int:
        """Any: what it makes of a text is remembered by it."""
        ...


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """Documents of one split of one data set.

    source: where they were found, in words that name no user's folder; of the hub, its commit too
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
    hub: split -> data set and one `file` of it, JSON lines as local ones are, or else arguments of
        `datasets.load_dataset`; none of them if the corpus is local only
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
                "file": f"en/c4-{split}.00000-of-{shards}.json.gz",
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
# A user's own text: one document, or one a line under `text`.
OWN_TEXTS, OWN_SPLIT, OWN_FIELD = (".txt", ".jsonl.gz"), "train", "text"


def names() -> list[str]:
    """Every corpus name."""
    return sorted([*SOURCES, PYDOC])


def load(name: str, split: str, reporter: "Reporter | None" = None) -> TextCorpus:
    """Read a corpus; ConfigError for an unknown name or split, MachineError if it is nowhere.

    reporter: told how far a download is
    """
    _check(name, split)
    if names_a_file(name):
        path = Path(name).expanduser()
        return _corpus(name, split, _documents_of(path), path.name)
    if name == PYDOC:
        source = f"pydoc_data.topics of Python {platform.python_version()}"
        return _corpus(name, split, split_topics()[split], source)
    source_of = SOURCES[name]
    found = local_file(source_of.folder, source_of.files[split])
    if found is not None:
        documents = _read_documents(found, source_of.field)
        return _corpus(name, split, documents, f"{DATA_DIR}/{source_of.folder}/{found.name}")
    return _from_hub(name, split, source_of, reporter)


def at_hand(name: str, split: str) -> str | None:
    """None if `load` needs no network, else one sentence that says what is missing."""
    _check(name, split)
    if name == PYDOC or names_a_file(name):
        return None
    source = SOURCES[name]
    if local_file(source.folder, source.files[split]) is not None:
        return None
    return (
        f"{name} ({split}) is not on this machine: {_looked_at(source.folder, source.files[split])}"
    )


def obtainable(name: str, split: str) -> bool:
    """Whether `load` will find a text: here, or on a hub that answers."""
    if at_hand(name, split) is None:
        return True
    published = SOURCES[name].hub.get(split)
    return published is not None and data_sets.obtainable(published["path"], published.get("file"))


def local_file(folder: str, stem: str) -> Path | None:
    """`TRINITY_DATA_DIR/<folder>/<stem>.jsonl.gz` if it exists."""
    root = os.environ.get(DATA_DIR)
    if not root:
        return None
    place = Path(root).expanduser()
    if not place.is_dir():
        msg = (
            f"{DATA_DIR} is '{root}', which is not a folder. Set it to a folder that holds "
            "<name>/<split>.jsonl.gz files, or unset it to read data sets from the Hugging Face "
            "hub."
        )
        raise MachineError(msg)
    path = place / folder / f"{stem}.jsonl.gz"
    if path.is_symlink() and not path.exists():
        msg = f"{path}: is a link to {path.readlink()}, which is not there. Mend or remove it."
        raise ConfigError(msg)
    return path if path.is_file() else None


def token_ids(tokenizer: Tokenizer, text: str) -> "Tensor":
    """The papers' `tokenizer(text).input_ids`, special tokens included.  ->  int64 [tokens]"""
    # Imported here: finding data needs no tensor.
    import torch

    # verbose=False: no warning that a text is longer than the model's context; it is cut into
    # windows afterwards.
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def appended(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts after every text: none, or its end token."""
    probe = "a"
    bare: list[int] = tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]
    whole: list[int] = tokenizer(probe, verbose=False)["input_ids"]
    for start in range(len(whole) - len(bare), -1, -1):
        if whole[start : start + len(bare)] == bare:
            return whole[start + len(bare) :]
    return []


def content_hash(parts: Iterable[str]) -> str:
    """sha256 over texts, each preceded by its length: moving a boundary changes it."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def names_a_file(name: str) -> bool:
    """Whether it is a user's own text rather than one of `names`."""
    return name.endswith(OWN_TEXTS)


def _check(name: str, split: str) -> None:
    if names_a_file(name):
        if split != OWN_SPLIT:
            msg = f"text '{name}': is a file, whose only split is '{OWN_SPLIT}', not '{split}'."
            raise ConfigError(msg)
        if not Path(name).expanduser().is_file():
            msg = f"text '{name}': there is no such file."
            raise ConfigError(msg)
        return
    if name not in names():
        msg = (
            f"data set '{name}' is unknown.{nearest(name, names())} Known: {', '.join(names())}; "
            f"or a file of yours ({', '.join(OWN_TEXTS)})."
        )
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


def _documents_of(path: Path) -> tuple[str, ...]:
    """Of a user's own file; ConfigError if it holds no text."""
    if path.suffix != ".txt":
        found = tuple(_read_documents(path, OWN_FIELD))
    else:
        try:
            found = (path.read_text(encoding="utf-8"),)
        except UnicodeDecodeError as error:
            msg = f"text {path}: is not UTF-8 (byte {error.start}). Save it as UTF-8."
            raise ConfigError(msg) from error
    if not any(found):
        msg = f"text {path}: is empty."
        raise ConfigError(msg)
    return found


def _read_documents(path: Path, field: str) -> Iterator[str]:
    with jsonl.opened(path) as stream:
        for number, row in jsonl.rows(stream, path):
            if not isinstance(row.get(field), str):
                msg = f"{path}, line {number}: expected an object with text under '{field}'."
                raise ConfigError(msg)
            yield row[field]


def _from_hub(name: str, split: str, source: TextSource, reporter: "Reporter | None") -> TextCorpus:
    where = _looked_at(source.folder, source.files[split])
    if split not in source.hub:
        msg = f"{name} ({split}): {where}, and this data set is on no hub."
        raise MachineError(msg)
    arguments = source.hub[split]
    try:
        if "file" in arguments:
            path, where_from = data_sets.fetch(arguments["path"], arguments["file"], reporter)
            return _corpus(name, split, _read_documents(path, source.field), where_from)
        read = data_sets.load(**arguments)
    except MachineError as error:
        msg = (
            f"{name} ({split}): {where}, and the hub did not give it: {error} Or put the file "
            f"there, or use pydoc, the text that every Python carries."
        )
        raise MachineError(msg) from error
    return _corpus(name, split, read.rows[source.field], read.source)


def _looked_at(folder: str, stem: str) -> str:
    path = f"{DATA_DIR}/{folder}/{stem}.jsonl.gz"
    return (
        f"no {path}"
        if os.environ.get(DATA_DIR)
        else f"{DATA_DIR} is not set (it would hold {path[17:]})"
    )
