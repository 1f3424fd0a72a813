"""A whole model put together from layers at some level each, and how far it is from the dense one.

The model is in memory as a whole; of its layers, those whose level changes are read again.  What
the dense model says is not kept as logits, [seq, vocabulary] a sequence, but as what leaves its
last block, [seq, width], from which norm and head make them again.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trinity.harness.compress.block_calls import logits_after
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.hidden import Hidden
from trinity.harness.compress.versions import load_version
from trinity.harness.models.decoder import Decoder, set_weight
from trinity.harness.records import products
from trinity.methods.errors import ConfigError
from trinity.methods.searching import Choice


class Candidates:
    """The model at one choice after the other.  Loaded when the first is asked for."""

    def __init__(
        self, decoder: Decoder, sequences: Tensor, versions: Mapping[str, Path], folder: Path
    ) -> None:
        """sequences: int64 [samples, seqlen]   versions: the stage of each layer

        folder: for what memory lacks
        """
        self.decoder, self.sequences, self.versions = decoder, sequences, versions
        self.folder = folder
        self._dense: Hidden | None = None
        self._now: dict[str, int] = {}

    def divergence(self, choice: Choice, sequences: Sequence[int]) -> float:
        """Mean KL(dense || choice) of next-token distributions, nats a token."""
        return self._mean(choice, sequences, self._divergence)

    def loss(self, choice: Choice, sequences: Sequence[int]) -> float:
        """Mean next-token loss, nats a token."""
        return self._mean(choice, sequences, self._loss)

    @torch.no_grad()
    def _mean(
        self, choice: Choice, sequences: Sequence[int], of: Callable[[int, Tensor], Tensor]
    ) -> float:
        """of: (a sequence's number, ids [1, seq]) -> what is measured"""
        if self._dense is None:
            self._dense = self._load()
        for name, level in choice.items():
            if self._now.get(name) != level:
                weight = load_version(self.versions[name], name, level).to(self.decoder.device)
                set_weight(self.decoder.model.get_submodule(name), weight, self.decoder.dtype)
                self._now[name] = level
        ids = self.sequences.to(self.decoder.device)
        with products.fastest():
            found = [float(of(number, ids[number][None])) for number in sequences]
        value = sum(found) / len(found)
        if value != value:
            msg = (
                "a model with layers at the levels that are tried gives NaN. Use `model.dtype: "
                "float32`, or levels that take less."
            )
            raise ConfigError(msg)
        return value

    def _load(self) -> Hidden:
        """Load the model.  -> what leaves the dense model's last block"""
        decoder = self.decoder
        entering = Entering(decoder, self.sequences, self.folder)
        for _ in decoder.blocks:
            entering.advance({})
        decoder.load_outside_blocks()
        for index in range(len(decoder.blocks)):
            decoder.load(f"{decoder.family.blocks}.{index}")
        return entering.states

    def _logits(self, ids: Tensor) -> Tensor:
        """ids: [1, seq]  ->  float32 [seq, vocabulary]"""
        logits: Tensor = self.decoder.model(input_ids=ids, use_cache=False).logits
        return logits[0].float()

    def _loss(self, number: int, ids: Tensor) -> Tensor:
        return functional.cross_entropy(self._logits(ids)[:-1], ids[0, 1:])

    def _divergence(self, number: int, ids: Tensor) -> Tensor:
        assert self._dense is not None
        decoder = self.decoder
        after = logits_after(decoder.model, decoder.blocks, ids, self._dense[number])
        dense = after[0].float().log_softmax(-1)
        found = self._logits(ids).log_softmax(-1)
        return functional.kl_div(found, dense, reduction="batchmean", log_target=True)

    def unload(self) -> None:
        """Forget the weights."""
        for index in range(len(self.decoder.blocks)):
            self.decoder.unload(f"{self.decoder.family.blocks}.{index}")
        self.decoder.unload_outside_blocks()


@contextlib.contextmanager
def candidates(
    decoder: Decoder, sequences: Tensor, versions: Mapping[str, Path], folder: Path
) -> Iterator[Candidates]:
    """`Candidates`, whose weights are gone afterwards."""
    found = Candidates(decoder, sequences, versions, folder)
    try:
        yield found
    finally:
        found.unload()
