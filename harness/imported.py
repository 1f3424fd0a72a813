"""Weights compressed elsewhere: a checkpoint source's result as a checkpoint of ours."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from trinity.harness import checkpoint
from trinity.harness.code import code_sha256, methods_sha256
from trinity.harness.models import Decoder, linear_shape, weight_of
from trinity.harness.records.environment import environment
from trinity.harness.store import StageStore
from trinity.harness.walk import layer_report, save_block
from trinity.methods.contract import CheckpointSource, LayerStats, MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense


def import_checkpoint(
    decoder: Decoder,
    source: CheckpointSource[MethodConfig],
    config: MethodConfig,
    model_sha256: str,
    store: StageStore,
) -> Path:
    """The stage of a checkpoint with the weights that a source finds; the others stay dense.

    A weight that is found for no linear of the model is an error: it would be lost silently.
    `trinity.json` lists, under `imported`, the linears that stay dense and the tensors of the file
    that are in neither the model nor a layer that was found.
    """
    described = {"method": source.name, **config.model_dump(mode="json")}

    def write(folder: Path) -> None:
        tensors = {name: decoder.reader.read(name) for name in decoder.reader.places}
        found = source.load(tensors, config)
        shapes = decoder.layer_shapes()
        lost = sorted(set(found) - set(shapes))
        if lost:
            msg = (
                f"{source.name}: found weights for {', '.join(lost[:3])}, which this model does "
                f"not have as a linear of a block; its layers are called like "
                f"'{next(iter(shapes))}'."
            )
            raise ConfigError(msg)
        decoder.provided = frozenset(f"{name}.weight" for name in found)
        blocks = []
        for index in range(len(decoder.blocks)):
            place = folder / f"block-{index}"
            place.mkdir()
            _write_block(place, decoder, index, found)
            blocks.append(place)
        summary = {
            "model": {"sha256": model_sha256},
            "imported": {
                **described,
                "dense": [name for name in shapes if name not in found],
                "unmapped": unmapped(tensors, decoder, source, found),
            },
            "versions": environment()["packages"],
        }
        checkpoint.write(folder, decoder, blocks, summary)
        for place in blocks:
            shutil.rmtree(place)

    inputs = {
        "model": model_sha256,
        "imported": described,
        "dtype": str(decoder.dtype),
        "code": [
            code_sha256("imported.py", "checkpoint.py", "models.py"),
            methods_sha256([source]),
        ],
    }
    return store.fetch("imported", inputs, write)


def unmapped(
    tensors: Mapping[str, Tensor],
    decoder: Decoder,
    source: CheckpointSource[MethodConfig],
    found: Mapping[str, CompressedWeight],
) -> list[str]:
    """Names of the file's tensors that nothing was made of."""
    mapped = set(decoder.tensor_names.values())
    mapped |= {f"{layer}.{part}" for layer in found for part in source.parts}
    return sorted(set(tensors) - mapped)


def _write_block(
    folder: Path, decoder: Decoder, index: int, found: Mapping[str, CompressedWeight]
) -> None:
    path = f"{decoder.family.blocks}.{index}"
    decoder.load(path)
    weights: dict[str, CompressedWeight] = {}
    layers = {}
    for name in decoder.layer_names(index):
        module = decoder.model.get_submodule(name)
        weights[name] = found.get(name) or Dense(weight_of(module).to(decoder.dtype))
        shape = linear_shape(module)
        if weights[name].shape != shape:
            found_shape = list(weights[name].shape)
            msg = f"{name}: the imported weight is {found_shape}, the layer {list(shape)}."
            raise ConfigError(msg)
        # The file's own weight is all there is: there is no original to be wrong about.
        original = None if name in found else weight_of(module)
        layers[name] = layer_report(original, weights[name], LayerStats())
    decoder.unload(path)
    save_block(folder, weights, layers)
