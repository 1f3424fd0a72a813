"""What a suite measures: a language model that scores tokens and decodes, however it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

MeasurementPath = Literal["simulated", "reference", "compiled", "kernel"]
"""How a number came about.

simulated: torch, weights dequantized to floats   reference: torch, packed weights
compiled: IREE code generation, packed weights     kernel: this project's own kernels inside IREE
"""


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


# Families whose packed logits are tested against those of each sequence alone.
PACKING = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt", "gpt2", "gpt_neox"}
)


class TorchEngine:
    """A Hugging Face causal language model in eager torch, its compressed weights dequantized."""

    name = "torch"

    def __init__(self, model: nn.Module, max_length: int, path: MeasurementPath) -> None:
        """model: in eval mode; path: 'reference' only if nothing in it was dequantized."""
        self.model: Any = model.eval()  # transformers has no common type for a causal model
        self.device = next(model.parameters()).device
        self.max_length = max_length
        self.path = path

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq]  ->  float32 [seq, vocab]"""
        ids = ids[None].to(self.device)
        output: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return output.float()

    def can_pack(self, tree: Tree) -> bool:
        """Whether the family is tested and the tree is no longer than a sliding window."""
        config = getattr(self.model, "config", None)
        if config is None or config.model_type not in PACKING:
            return False
        # A mask of our own takes the place of the window's.
        window = getattr(config, "sliding_window", None)
        return window is None or tree.longest <= window

    @torch.inference_mode()
    def packed_logits(self, trees: Sequence[Tree]) -> list[list[Tensor]]:
        """One forward; a position sees its prefix and its own branch, at its own place.

        ->  by tree and branch, float32 [keep, vocab]
        """
        packed = _packed(trees)
        dtype = next(self.model.parameters()).dtype
        mask = torch.zeros(packed.visible.shape, dtype=dtype)
        mask.masked_fill_(~packed.visible, torch.finfo(dtype).min)
        wanted = sorted({row for rows in packed.rows for row in rows})
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
        return TorchSession(self.model, self.device)


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

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """model: in eval mode, on `device`."""
        self.model, self.device = model, device
        self.cache: object | None = None

    def prefill(self, ids: Tensor) -> Tensor:
        """ids: int64 [batch, seq]  ->  float32 [batch, vocab]"""
        return self._advance(ids)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [batch]  ->  float32 [batch, vocab]"""
        return self._advance(tokens[:, None])

    @torch.inference_mode()
    def _advance(self, ids: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits
