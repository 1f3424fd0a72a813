"""Compression that is stopped after its first block, and taken up again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore


def whole_and_resumed(
    place: Path, steps: list[dict[str, Any]], ids: Tensor
) -> tuple[list[Path], list[Path]]:
    """Folders of the blocks of `place/model`: of one run, and of one that was stopped meanwhile."""

    def walked(store: str, stop_after: int) -> list[Path]:
        decoder = Decoder(place / "model", torch.float32, torch.device("cpu"))
        spec = CompressSpec.model_validate({"steps": steps})
        made = plan.make(spec, decoder.layer_shapes())

        def progress(done: int, of: int) -> None:
            if done == stop_after:
                raise KeyboardInterrupt

        return Walk(decoder, made, ids, StageStore(place / store), {}).run(progress)

    whole = walked("one", 0)
    with pytest.raises(KeyboardInterrupt):
        walked("other", 1)
    again = walked("other", 0)
    return whole, again
