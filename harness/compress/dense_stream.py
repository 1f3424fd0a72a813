"""The model before compression, run on the calibration text beside the one that is compressed.

For statistics that compare what both give a layer.  It is the mechanism of tuning offline:
`Entering`, whose blocks are run as the files have them.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from trinity.harness.compress.entering import Entering
from trinity.harness.models.decoder import Decoder


class DenseStream:
    """Hidden states of the model before compression, a block further each time."""

    def __init__(self, decoder: Decoder, sequences: Tensor, folder: Path) -> None:
        """Embed the text.  sequences: int64 [samples, seqlen]   folder: for what memory lacks"""
        self.entering = Entering(decoder, sequences, folder)
        self._weights: dict[nn.Module, nn.Parameter] = {}

    def advance_to(self, index: int) -> None:
        """Run blocks until what enters block `index` is known."""
        while self.entering.index < index:
            self.entering.advance({})

    def keep(self, linear: nn.Module) -> None:
        """Remember the weight of a linear of the loaded block, which is about to be replaced."""
        assert isinstance(linear.weight, nn.Parameter)
        self._weights[linear] = linear.weight

    def forget(self) -> None:
        """The block is done."""
        self._weights.clear()

    @contextlib.contextmanager
    def as_before(self) -> Iterator[None]:
        """Meanwhile, linears of the loaded block that were replaced have the weights they had."""
        now = {linear: linear.weight for linear in self._weights}
        for linear, weight in self._weights.items():
            linear.weight = weight
        try:
            yield
        finally:
            for linear, replaced in now.items():
                linear.weight = replaced
