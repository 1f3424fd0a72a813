"""What a suite measures: a language model that scores tokens and decodes, however it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trinity.harness.models import families
from trinity.harness.models.rotary import Rotaries, unchanged_up_to
from trinity.harness.records import products
from trinity.harness.records.measurement import MeasurementPath
from trinity.methods.errors import ConfigError


class DecodeSession(Protocol):
    """Sequences of one length, grown together token by token against a key/value cache."""

    def prefill(self, ids: Tensor) -> Tensor:
        """Read a prompt of each.

        ids: int64 [batch, seq]  ->  logits of the last position, float32 [batch, vocab]
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each.

        tokens: int64 [batch]  ->  logits that follow it, float32 [batch, vocab]
        """
        ...


class Engine(Protocol):
    """Runs a model: scores one sequence at a time, unpadded, so that results never depend on
    batching, and decodes one or several.
    """

    name: str
    path: MeasurementPath
    max_length: int

    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq], seq <= max_length  ->  float32 [seq, vocab]"""
        ...

    def session(self) -> DecodeSession:
        """New, empty sequences."""
        ...


@dataclass(frozen=True)
class Tree:
    """Sequences that begin alike: a question and its answers.

    prefix: ids that all share   branches: ids that follow in each   keep: how many of the last
    positions of each branch's sequence (prefix included) logits are wanted of
    """

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    keep: tuple[int, ...]

    @property
    def size(self) -> int:
        """Positions of the prefix and of all branches."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return len(self.prefix) + max(map(len, self.branches))


@runtime_checkable
class PackingEngine(Protocol):
    """An engine that reads many trees in one forward, each as if it were alone, without padding."""

    def can_pack(self, tree: Tree) -> bool:
        """Whether this model's attention allows it."""
        ...

    def packed_logits(self, trees: Sequence[Tree]) -> list[list[Tensor]]:
        """->  by tree and branch, logits of the wanted positions, float32 [keep, vocab]"""
        ...


def check_tokens(ids: Tensor, vocabulary: int | None) -> None:
    """ConfigError if a text has tokens that the model does not; None knows no vocabulary."""
    largest = int(ids.max()) if ids.numel() else 0
    if vocabulary is not None and largest >= vocabulary:
        msg = (
            f"token {largest} of the text is beyond the model's vocabulary of {vocabulary}: the "
            f"tokenizer beside it belongs to another model, or was given tokens that the "
            f"embedding lacks. Get the model's own tokenizer."
        )
        raise ConfigError(msg)


class TorchEngine:
    """A Hugging Face causal language model in eager torch, its compressed weights dequantized."""

    name = "torch"

    def __init__(
        self, model: nn.Module, max_length: int, path: MeasurementPath, *, alone: bool = False
    ) -> None:
        """model: in eval mode; path: 'reference' only if nothing in it was dequantized.

        alone: whether what a forward gives depends on all that it reads, as rounded inputs do
        """
        self.model: Any = model.eval()  # transformers has no common type for a causal model
        self.device = next(model.parameters()).device
        self.max_length = max_length
        self.path = path
        self.alone = alone
        config = getattr(model, "config", None)
        self.vocabulary: int | None = getattr(config, "vocab_size", None)
        self.rotaries = Rotaries(model)

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq]  ->  float32 [seq, vocab]"""
        check_tokens(ids, self.vocabulary)
        self.rotaries.forget()
        ids = ids[None].to(self.device)
        with products.fastest():
            output: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return output.float()

    def can_pack(self, tree: Tree) -> bool:
        """Whether the family is tested, and no sequence of the tree reaches what depends on its
        neighbours: a sliding window, whose place our own mask takes, or other rope frequencies.
        """
        config = getattr(self.model, "config", None)
        if self.alone or config is None or not families.get(config.model_type).packs:
            return False
        if any(getattr(config, key, False) for key in ("use_bidirectional_attention", "alibi")):
            return False
        limits = (getattr(config, "sliding_window", None), unchanged_up_to(config))
        return all(limit is None or tree.longest <= limit for limit in limits)

    @torch.inference_mode()
    def packed_logits(self, trees: Sequence[Tree]) -> list[list[Tensor]]:
        """One forward; a position sees its prefix and its own branch, at its own place.

        ->  by tree and branch, float32 [keep, vocab]
        """
        packed = _packed(trees)
        self.rotaries.forget()
        check_tokens(packed.ids, self.vocabulary)
        dtype = next(self.model.parameters()).dtype
        mask = torch.zeros(packed.visible.shape, dtype=dtype)
        mask.masked_fill_(~packed.visible, torch.finfo(dtype).min)
        wanted = sorted({row for rows in packed.rows for row in rows})
        with products.fastest():
            output: Tensor = self.model(
                input_ids=packed.ids[None].to(self.device),
                position_ids=packed.positions[None].to(self.device),
                attention_mask=mask[None, None].to(self.device),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, device=self.device),
            ).logits[0]
        place = {row: index for index, row in enumerate(wanted)}
        logits = output.float()
        found = iter(logits[[place[row] for row in rows]] for rows in packed.rows)
        return [[next(found) for _ in tree.branches] for tree in trees]

    def session(self) -> "TorchSession":
        """New, empty sequences: as many as the prompt has."""
        return TorchSession(self)


@dataclass(frozen=True, eq=False)
class _Packed:
    """Trees laid end to end.

    ids, positions: int64 [size]   visible: bool [size, size], row sees column
    rows: of each branch of each tree, the wanted positions in `ids`
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    rows: list[list[int]]


def _packed(trees: Sequence[Tree]) -> _Packed:
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []  # which tree
    part: list[int] = []  # 0: prefix, else a branch of its own number
    rows: list[list[int]] = []
    branches = 0
    for number, tree in enumerate(trees):
        start, length = len(ids), len(tree.prefix)
        ids += tree.prefix
        positions += range(length)
        part += [0] * length
        for branch, keep in zip(tree.branches, tree.keep, strict=True):
            branches += 1
            first = len(ids)
            ids += branch
            positions += range(length, length + len(branch))
            part += [branches] * len(branch)
            path = [*range(start, start + length), *range(first, len(ids))]
            rows.append(path[len(path) - keep :])
        owner += [number] * (len(ids) - len(owner))
    tree_of, part_of = torch.tensor(owner), torch.tensor(part)
    visible = tree_of[:, None] == tree_of[None]
    visible &= (part_of[None] == 0) | (part_of[:, None] == part_of[None])
    visible &= torch.ones_like(visible).tril()
    return _Packed(torch.tensor(ids), torch.tensor(positions), visible, rows)


class TorchSession:
    """Decoding with the cache that transformers makes for the model."""

    def __init__(self, engine: TorchEngine) -> None:
        """engine: has the model"""
        self.engine = engine
        self.cache: object | None = None

    def prefill(self, ids: Tensor) -> Tensor:
        """ids: int64 [batch, seq]  ->  float32 [batch, vocab]"""
        return self._advance(ids)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [batch]  ->  float32 [batch, vocab]"""
        return self._advance(tokens[:, None])

    @torch.inference_mode()
    def _advance(self, ids: Tensor) -> Tensor:
        check_tokens(ids, self.engine.vocabulary)
        self.engine.rotaries.forget()
        output = self.engine.model(
            input_ids=ids.to(self.engine.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits
