"""Weights compressed elsewhere: a checkpoint source's result as a checkpoint of ours."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.block import layer_report, save_block
from trinity.harness.compress import contracts
from trinity.harness.models.caching import Caching
from trinity.harness.models.decoder import Decoder, cast, matrix_of, weight_of
from trinity.harness.models.model_files import WeightReader, read_json
from trinity.harness.records.environment import environment
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore
from trinity.methods import plugins, registry
from trinity.methods.contract import CheckpointSource, LayerStats, MethodConfig, StoredTensors
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, InputFormat


def import_checkpoint(
    decoder: Decoder,
    source: CheckpointSource[MethodConfig],
    config: MethodConfig,
    model_sha256: str,
    store: StageStore,
    rounded: Mapping[str, InputFormat],
    cache: Caching | None = None,
) -> Path:
    """The stage of a checkpoint with the weights that a source finds; the others stay dense.

    rounded: how inputs are rounded when the model runs, by layer   cache: how keys and values are
    A weight that is found for nothing in the model is an error: it would be lost silently.
    `trinity.json` lists, under `imported`, the linears that stay dense, what was found outside the
    blocks and is kept as plain floats (a head), and the tensors of the file that are in neither the
    model nor a layer that was found.
    """
    described = {"method": source.name, **config.model_dump(mode="json")}

    def write(folder: Path) -> None:
        tensors = stored_tensors(decoder.folder)
        found = _loaded(decoder, source, config, tensors)
        names = model_names(decoder, source, found)
        lost = unmapped(tensors, decoder, source, found)
        _check_biases(tensors, decoder, names)
        weights = {names[name]: weight for name, weight in found.items()}
        shapes = decoder.layer_shapes()
        decoder.provided = frozenset(f"{name}.weight" for name in weights)
        blocks = _write_blocks(folder, decoder, weights)
        imported = {
            **described,
            "dense": [name for name in shapes if name not in weights],
            "decoded": [name for name in weights if name not in shapes],
            "unmapped": lost,
        }
        summary = {
            "model": {"sha256": model_sha256},
            "imported": imported,
            "versions": environment()["packages"],
            "plugins": plugins.versions(registry.owners(source.name)),
        }
        decoded = _decoded(decoder, weights)
        checkpoint.write(folder, decoder, blocks, summary, rounded, decoded, cache)
        for place in blocks:
            shutil.rmtree(place)

    inputs = {
        "model": model_sha256,
        "imported": described,
        "dtype": str(decoder.dtype),
        "family": asdict(decoder.family),
        "rounded": {name: inputs.to_json() for name, inputs in rounded.items()},
        "cache": cache.to_json() if cache else None,
        "code": own_code.sha256(import_checkpoint, methods=[source]),
    }
    return store.fill("imported", inputs, write)


def _loaded(
    decoder: Decoder,
    source: CheckpointSource[MethodConfig],
    config: MethodConfig,
    tensors: StoredTensors,
) -> Mapping[str, CompressedWeight]:
    """What a source makes of a folder's tensors, held to its contract."""
    load = partial(source.load, tensors, config)
    result = contracts.call(source.name, f"model {decoder.folder}", load, {})
    return contracts.loaded(source.name, f"model {decoder.folder}", result)


def _write_blocks(
    folder: Path, decoder: Decoder, weights: Mapping[str, CompressedWeight]
) -> list[Path]:
    blocks = []
    for index in range(len(decoder.blocks)):
        place = folder / f"block-{index}"
        place.mkdir()
        _write_block(place, decoder, index, weights)
        blocks.append(place)
    return blocks


def _decoded(decoder: Decoder, weights: Mapping[str, CompressedWeight]) -> dict[str, Tensor]:
    """Plain floats of what was found outside the blocks, by the tensor's name."""
    shapes = decoder.layer_shapes()
    return {
        f"{name}.weight": cast(f"{name}: the imported weight", weight.dequantize(), decoder.dtype)
        for name, weight in weights.items()
        if name not in shapes
    }


def stored_tensors(folder: Path) -> StoredTensors:
    """What a checkpoint source is given of a model folder."""
    return StoredTensors(_Lazy(WeightReader(folder)), folder_settings(folder))


class _Lazy(Mapping[str, Tensor]):
    """Tensors of a folder, each read when it is asked for."""

    def __init__(self, reader: WeightReader) -> None:
        self._reader = reader

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._reader:
            raise KeyError(name)
        return self._reader.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._reader.places

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.places)

    def __len__(self) -> int:
        return len(self._reader.places)


def folder_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """What a model folder says about its tensors, by file name: JSON of any program, hence Any."""
    paths = [*sorted(folder.glob("*config.json")), folder / checkpoint.SUMMARY]
    return {path.name: read_json(path) for path in paths if path.is_file()}


def check_same_shapes(what: str, model: Any, dense: Decoder) -> None:
    """ConfigError unless the dense model that was named is of the architecture that is measured.

    what: is measured, for the message   model: its skeleton (transformers has no common type)
    """
    shapes, others = (
        {name: list(tensor.shape) for name, tensor in found.state_dict().items()}
        for found in (model, dense.model)
    )
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            msg = (
                f"{what}: {name} is {shapes.get(name, 'absent')}, and in the model that is named "
                f"as dense ({dense.folder}) it is {others.get(name, 'absent')}. Name the model "
                f"that was compressed."
            )
            raise ConfigError(msg)


def model_names(
    decoder: Decoder,
    source: CheckpointSource[MethodConfig],
    found: Mapping[str, CompressedWeight],
) -> dict[str, str]:
    """Name in the file -> name in the model (some files leave out the base model's prefix).

    ConfigError for a weight that is none of the model's, or has another shape.
    """
    shapes = decoder.layer_shapes()
    outside = (decoder.model.get_input_embeddings(), decoder.model.get_output_embeddings())
    shapes |= {
        name: matrix_of(module).shape
        for name, module in decoder.model.named_modules()
        if any(module is other for other in outside)
    }
    names = {}
    for name, weight in found.items():
        candidates = (name, f"{decoder.model.base_model_prefix}.{name}")
        own = next((candidate for candidate in candidates if candidate in shapes), None)
        if own is None:
            msg = (
                f"{source.name}: found weights for {name}, which this model does not have as a "
                f"linear of a block; its layers are called like '{next(iter(shapes))}'."
            )
            raise ConfigError(msg)
        if weight.shape != tuple(shapes[own]):
            msg = (
                f"{name}: the imported weight is {list(weight.shape)}, the layer "
                f"{list(shapes[own])}."
            )
            raise ConfigError(msg)
        names[name] = own
    return names


def _check_biases(
    tensors: Mapping[str, Tensor], decoder: Decoder, names: Mapping[str, str]
) -> None:
    """ConfigError where a layer that was found has a bias and the model none: it would be lost."""
    for name, own in names.items():
        bias, module = tensors.get(f"{name}.bias"), decoder.model.get_submodule(own)
        if bias is not None and getattr(module, "bias", None) is None and bool(bias.any()):
            msg = (
                f"{name}.bias holds numbers, and the layer of this model has no bias: its "
                f"config.json is of another model, or lacks a switch such as `attention_bias`."
            )
            raise ConfigError(msg)


def unmapped(
    tensors: Mapping[str, Tensor],
    decoder: Decoder,
    source: CheckpointSource[MethodConfig],
    found: Mapping[str, CompressedWeight],
) -> list[str]:
    """Names of the file's tensors that nothing was made of.

    Biases of zeros say nothing: AutoGPTQ writes them beside every layer.
    """
    mapped = set(decoder.stored.values())
    mapped |= {f"{layer}.{part}" for layer in found for part in (*source.parts, "bias")}
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
        cast(f"{name}: the imported weight", weights[name].dequantize(), decoder.dtype)
        # The file's own weight is all there is: there is no original to be wrong about.
        original = None if name in found else weight_of(module)
        layers[name] = layer_report(original, weights[name], LayerStats())
    decoder.unload(path)
    save_block(folder, weights, layers)
