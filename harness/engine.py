"""What a suite measures: a language model that scores tokens and decodes, however it runs."""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

MeasurementPath = Literal["simulated", "reference", "compiled", "kernel"]
"""How a number came about.

simulated: torch, weights dequantized to floats   reference: torch, packed weights
compiled: IREE code generation, packed weights     kernel: this project's own kernels inside IREE
"""


class DecodeSession(Protocol):
    """One sequence, grown token by token against a key/value cache."""

    def prefill(self, ids: Tensor) -> Tensor:
        """Read a prompt.  ids: int64 [seq]  ->  logits of its last position, float32 [vocab]"""
        ...

    def step(self, token: int) -> Tensor:
        """Read one more token.  ->  logits that follow it, float32 [vocab]"""
        ...


class Engine(Protocol):
    """Runs a model one sequence at a time, unpadded, so that results never depend on batching."""

    name: str
    path: MeasurementPath
    max_length: int

    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq], seq <= max_length  ->  float32 [seq, vocab]"""
        ...

    def session(self) -> DecodeSession:
        """A new, empty sequence."""
        ...


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

    def session(self) -> "TorchSession":
        """A new, empty sequence."""
        return TorchSession(self.model, self.device)


class TorchSession:
    """Decoding with the cache that transformers makes for the model."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """model: in eval mode, on `device`."""
        self.model, self.device = model, device
        self.cache: object | None = None

    def prefill(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq]  ->  float32 [vocab]"""
        return self._advance(ids[None])

    def step(self, token: int) -> Tensor:
        """->  float32 [vocab]"""
        return self._advance(torch.tensor([[token]]))

    @torch.inference_mode()
    def _advance(self, ids: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        logits: Tensor = output.logits[0, -1].float()
        return logits
