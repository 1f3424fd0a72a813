"""The English text of `pydoc_data.topics`, which every Python installation carries.

For machines that have neither local data nor the hub.  It is technical prose with grammar and
examples, it differs between Python versions, and a model may have seen it in training: numbers on
it compare rows of one table, no more.

Topics quote each other (`class` is a section of `compound`), so a plain split by topic would put
the same paragraphs on both sides.  Topics that share a paragraph therefore stay together, and
within a side a repeated paragraph is kept once.
"""

import re
from functools import cache
from itertools import chain
from pydoc_data.topics import topics

_SHORTEST_TELLING = (
    80  # characters: shorter paragraphs (headings, "Changed in version") recur by chance
)
_TRAIN_SHARE = 0.7


@cache  # every suite of every row asks
def split_topics() -> dict[str, tuple[str, ...]]:
    """'train' (for calibration), about 70 percent of the text, and 'test'; a document a topic."""
    groups = sorted(_linked(topics), key=lambda names: (-_size(names), names))
    total = sum(map(_size, groups))
    room = {"train": _TRAIN_SHARE * total, "test": (1 - _TRAIN_SHARE) * total}
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for group in groups:
        side = max(room, key=lambda name: room[name])
        room[side] -= _size(group)
        sides[side] += group
    return {side: _documents(sorted(names)) for side, names in sides.items()}


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, their own line breaks and indentation kept."""
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


def _linked(texts: dict[str, str]) -> list[list[str]]:
    """Groups of topics, any two of which are joined by a chain of shared paragraphs."""
    group = {name: [name] for name in texts}
    owner: dict[str, str] = {}
    for name in sorted(texts):
        for block in paragraphs(texts[name]):
            key = _key(block)
            if len(key) < _SHORTEST_TELLING:
                continue
            first = group[owner.setdefault(key, name)]
            if first is not group[name]:
                first += group[name]
                group |= dict.fromkeys(group[name], first)
    return [sorted(names) for names in {id(names): names for names in group.values()}.values()]


def _size(names: list[str]) -> int:
    """Characters in the distinct paragraphs of some topics."""
    return sum(map(len, set(map(_key, chain(*(paragraphs(topics[name]) for name in names))))))


def _documents(names: list[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    documents: list[str] = []
    # Longest first: a chapter keeps its flow, and the topics cut out of it become empty and drop
    # out.
    for name in sorted(names, key=lambda name: (-len(topics[name]), name)):
        fresh = []
        for block in paragraphs(topics[name]):
            if _key(block) not in seen:
                seen.add(_key(block))
                fresh.append(block)
        if fresh:
            documents.append("\n\n".join(fresh))
    return tuple(documents)


def _key(block: str) -> str:
    return " ".join(block.split())
