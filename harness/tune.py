"""Tuning a whole compressed model: its loss as a function of the weights of its linears."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from trinity.harness.models import Decoder, oriented, weight_of
from trinity.harness.plan import PlannedTune
from trinity.harness.walk import layer_report, load_block, save_block
from trinity.methods.contract import LayerStats, ModelTask
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight


def tune(
    decoder: Decoder, step: PlannedTune, sequences: Tensor, blocks: list[Path], folder: Path
) -> None:
    """Write the tuned blocks into `tuned_folders(folder, ...)`.

    sequences: int64 [samples, seqlen]   blocks: finished stages, in order
    """
    current: dict[str, CompressedWeight] = {}
    for block in blocks:
        current |= load_block(block)
    on_device = sequences.to(decoder.device)
    task = ModelTask(current, on_device, _Loss(decoder))
    try:
        tuned = step.method.compress_model(task, step.config)
    except ConfigError as error:
        msg = f"compress.tune: {error}"
        raise type(error)(msg) from error
    for index, place in enumerate(tuned_folders(folder, len(blocks))):
        place.mkdir()
        path = f"{decoder.family.blocks}.{index}"
        decoder.load(path)
        names = decoder.layer_names(index)
        originals = {name: weight_of(decoder.model.get_submodule(name)) for name in names}
        # Statistics are gone by now, so the error is that of the weights.
        report = {n: layer_report(originals[n], tuned[n], LayerStats()) for n in names}
        save_block(place, {name: tuned[name] for name in names}, report)
        decoder.unload(path)


def tuned_folders(folder: Path, count: int) -> list[Path]:
    """Where the blocks of a tuned model are."""
    return [folder / f"block-{index:05d}" for index in range(count)]


class _Loss:
    """Mean next-token loss of the model with other weights in the linears of its blocks."""

    def __init__(self, decoder: Decoder) -> None:
        """Load everything but those weights."""
        self.decoder = decoder
        decoder.load_outside_blocks()
        for index in range(len(decoder.blocks)):
            decoder.load(f"{decoder.family.blocks}.{index}")
            for name in decoder.layer_names(index):
                linear = decoder.model.get_submodule(name)
                assert isinstance(linear.weight, Tensor)
                linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
        decoder.model.requires_grad_(False)

    def __call__(self, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """weights: [out, in] each   ids: int64 [seq]"""
        model, state = self.decoder.model, {}
        for name, weight in weights.items():
            own = oriented(model.get_submodule(name), weight)
            state[f"{name}.weight"] = own.to(self.decoder.device, self.decoder.dtype)
        inputs = {"input_ids": ids[None], "use_cache": False}
        logits = torch.func.functional_call(model, state, (), inputs).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:])
