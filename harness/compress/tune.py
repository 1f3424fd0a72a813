"""Tuning a whole compressed model: its loss as a function of the weights of its linears."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from trinity.harness.checkpoints.block import LAYERS, layer_report, load_block, save_block
from trinity.harness.compress import contracts
from trinity.harness.compress.plan import PlannedTune
from trinity.harness.models.decoder import Decoder, oriented, weight_of
from trinity.harness.store.stages import read_json
from trinity.methods.contract import LayerStats, ModelMethod, ModelTask, Reported
from trinity.methods.formats import CompressedWeight


def tune(
    decoder: Decoder,
    step: PlannedTune,
    sequences: Tensor,
    blocks: list[Path],
    folder: Path,
    say: Callable[[], Callable[[], None]] = lambda: lambda: None,
) -> None:
    """Write the tuned blocks into `tuned_folders(folder, ...)`.

    sequences: int64 [samples, seqlen]   blocks: finished stages, in order
    say: called at the start; what it gives is called for every loss that the method asks for
    """
    counted = say()
    current: dict[str, CompressedWeight] = {}
    for index, block in enumerate(blocks):
        loaded = load_block(block)
        current |= {name: loaded[name] for name in decoder.layer_names(index)}
    on_device = sequences.to(decoder.device)
    loss = _Loss(decoder, counted)
    task = ModelTask(current, on_device, loss, loss.original)
    tuned = _tuned(step, task)
    for index, place in enumerate(tuned_folders(folder, len(blocks))):
        place.mkdir()
        path = f"{decoder.family.blocks}.{index}"
        decoder.load(path)
        names = decoder.layer_names(index)
        originals = {name: weight_of(decoder.model.get_submodule(name)) for name in names}
        save_tuned(place, step, {n: tuned[n] for n in names}, originals, blocks[index])
        decoder.unload(path)


def save_tuned(
    folder: Path,
    step: PlannedTune,
    tuned: Mapping[str, Reported],
    originals: Mapping[str, Tensor],
    before: Path,
) -> None:
    """Write a tuned block.  before: the block's finished stage, whose diagnostics stay"""
    # Statistics are gone by now, so the error is that of the weights.
    report = {n: layer_report(originals[n], tuned[n].weight, LayerStats()) for n in tuned}
    for name, said in read_json(before / LAYERS).items():
        own = [{"method": step.name, **tuned[name].details}] if tuned[name].details else []
        report[name]["diagnostics"] = [*said.get("diagnostics", []), *own]
    save_block(folder, {name: found.weight for name, found in tuned.items()}, report)


def _tuned(step: PlannedTune, task: ModelTask) -> dict[str, Reported]:
    """The tuned weights by layer, held to the method's contract."""
    where = "compress.tune"
    assert isinstance(step.method, ModelMethod)
    given = {"current": task.current, "sequences": task.sequences}
    run = partial(step.method.compress_model, task, step.config)
    result = contracts.call(step.name, where, run, given)
    shapes = {name: weight.shape for name, weight in task.current.items()}
    tuned = contracts.weights(step.name, where, result, shapes)
    if step.config.keeps_formats:
        contracts.same_formats(step.name, task.current, tuned)
    return tuned


def tuned_folders(folder: Path, count: int) -> list[Path]:
    """Where the blocks of a tuned model are."""
    return [folder / f"block-{index:05d}" for index in range(count)]


class _Loss:
    """Mean next-token loss of the model with other weights in the linears of its blocks."""

    def __init__(self, decoder: Decoder, counted: Callable[[], None]) -> None:
        """Load everything but those weights.  counted: called for every loss"""
        self.decoder, self.counted = decoder, counted
        decoder.load_outside_blocks()
        for index in range(len(decoder.blocks)):
            self._load(index)
        decoder.model.requires_grad_(False)

    def original(self, name: str) -> Tensor:
        """The weight of one linear before compression.  -> float32 [out, in]"""
        decoder = self.decoder
        (index,) = (i for i in range(len(decoder.blocks)) if name in decoder.layer_names(i))
        decoder.load(f"{decoder.family.blocks}.{index}")
        weight = weight_of(decoder.model.get_submodule(name)).clone()
        self._without_linears(index)
        return weight

    def _load(self, index: int) -> None:
        self.decoder.load(f"{self.decoder.family.blocks}.{index}")
        self._without_linears(index)

    def _without_linears(self, index: int) -> None:
        for name in self.decoder.layer_names(index):
            linear = self.decoder.model.get_submodule(name)
            assert isinstance(linear.weight, Tensor)
            linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)

    def __call__(self, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """weights: [out, in] each   ids: int64 [seq]"""
        self.counted()
        model, state = self.decoder.model, {}
        for name, weight in weights.items():
            own = oriented(model.get_submodule(name), weight)
            state[f"{name}.weight"] = own.to(self.decoder.device, self.decoder.dtype)
        inputs = {"input_ids": ids[None], "use_cache": False}
        logits = torch.func.functional_call(model, state, (), inputs).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:])
