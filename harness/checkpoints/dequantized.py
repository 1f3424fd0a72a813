"""A compressed checkpoint as a model in torch, its weights dequantized."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.engines import finite
from trinity.harness.engines.engine import DecodeSession, TorchEngine
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.records import available
from trinity.harness.records.measurement import MeasurementPath
from trinity.harness.store.once import once

# Of logits that are remembered: 26 windows of 1024 positions at a vocabulary of 49152, which a
# comparison that resolves two points of agreement reads.
KEPT_BYTES = 5 << 30


def may_be_kept(held: int = 0) -> int:
    """Bytes of logits that one engine may remember: a quarter of what was free before it held any.

    held: bytes that it remembers already
    """
    return min(KEPT_BYTES, (available.available_bytes() + held) // 4)


class Remembering:
    """An engine that gives the logits of a text that it has read once without reading it again, as
    far as they fit.  What is no number is not kept: whoever looks for the layer reads it again.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self.of, self.model = engine, engine.model
        self.name, self.path, self.max_length = engine.name, engine.path, engine.max_length
        self._kept: dict[bytes, Tensor] = {}

    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq]  ->  float32 [seq, vocab], not to be changed"""
        key = ids.numpy().tobytes()
        if key in self._kept:
            return self._kept[key]
        found = self.of.logits(ids)
        held = sum(kept.nbytes for kept in self._kept.values())
        if held + found.nbytes <= may_be_kept(held) and finite.are_numbers(found):
            self._kept[key] = found
        return found

    def session(self) -> DecodeSession:
        """New, empty sequences."""
        return self.of.session()


class Dequantized:
    """A checkpoint whose engine is loaded when it is first needed."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """device: that the model will run on"""
        self.checkpoint, self.device = checkpoint, device
        self._reading: Remembering | None = None

    @once
    def load(self) -> TorchEngine:
        """The model in torch."""
        compressed = self.checkpoint
        cache = compressed.cache
        untouched = not (compressed.inputs or cache) and all(
            layout.dtype and not layout.pattern for layout in compressed.formats.values()
        )
        model = compressed.load_model().to(self.device)
        path: MeasurementPath = "reference" if untouched else "simulated"
        alone = any(rounded.is_of_call for rounded in compressed.inputs.values())
        alone = alone or (cache is not None and cache.format.together > 1)
        return TorchEngine(model, compressed.context, path, alone=alone)

    def load_for_text(self) -> Remembering:
        """The model in torch, for suites that read the same windows of a text, and for comparisons
        of many models with it.
        """
        if self._reading is None:
            self._reading = Remembering(self.load())
        return self._reading

    def forget(self) -> None:
        """Keep the model, and nothing of what it said of a text."""
        self._reading = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded once (transformers has no common type for it)."""
        return tokenizer_of(self.checkpoint.folder)
