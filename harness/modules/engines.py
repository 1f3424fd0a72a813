"""The engines of one compressed checkpoint, each compiled and loaded when it is first needed."""

import torch

from trinity.harness.checkpoints.dequantized import Dequantized
from trinity.harness.engines.engine import Engine
from trinity.harness.modules.module_stages import Lowered, Subject, lower
from trinity.harness.recipes.recipe import LowerSpec
from trinity.harness.store.once import once
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError


class Engines:
    """A checkpoint in torch and, where a target is named, as a compiled module."""

    def __init__(
        self, subject: Subject, lower_spec: LowerSpec | None, store: StageStore, reporter: Reporter
    ) -> None:
        """lower_spec: what to compile for; None leaves torch as the only engine."""
        self.subject, self.lower_spec = subject, lower_spec
        self.store, self.reporter = store, reporter
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dequantized = Dequantized(subject.checkpoint, self.device)

    @once
    def lower(self) -> Lowered | None:
        """Compile and verify the module, or take it from the store; None if nothing is lowered."""
        if self.lower_spec is None:
            return None
        return self._lower(self.lower_spec, 1)

    def _lower(self, spec: LowerSpec, batch: int) -> Lowered:
        return lower(self.subject, spec, self.store, self.reporter, batch)

    def prepare(self, name: str) -> Dequantized | Lowered:
        """What loads the engine 'torch' or 'iree', compiled if it is a module."""
        if name == "torch":
            return self.dequantized
        lowered = self.lower()
        if lowered is None:
            msg = "engine 'iree': there is no `lower:` section that says for which target."
            raise ConfigError(msg)
        return lowered

    def load(self, name: str, batch: int = 1) -> Engine:
        """'torch' or 'iree', compiled where it must be, and loaded.

        batch: sequences that it is to decode together; of a module for several, nothing is kept
        here, so that it leaves memory with whoever asked
        """
        prepared = self.prepare(name)
        if name != "torch" and batch != 1:
            assert self.lower_spec is not None  # or `prepare` had refused
            return self._lower(self.lower_spec, batch).load()
        return prepared.load()
