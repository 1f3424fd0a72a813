"""A compressed checkpoint in a layout that other programs read."""

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear

from trinity.harness.checkpoints import compressed_tensors, origin
from trinity.harness.checkpoints.checkpoint import REST, Checkpoint, copy_companions
from trinity.harness.models.decoder import skeleton
from trinity.harness.models.folders import CONFIG, check_layout
from trinity.harness.models.model_config import DTYPES
from trinity.harness.models.model_files import INDEX
from trinity.harness.store import sums
from trinity.harness.store.stages import write_json
from trinity.harness.store.writing import make_folder
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CompressedWeight, Quantized, Sparse, WeightFormat
from trinity.methods.formats.quantized import Grid
from trinity.methods.gptq_checkpoint import write_layer
from trinity.methods.gptq_settings import Version
from trinity.methods.plugins import PACKAGE

QUANTIZE_CONFIG = "quantize_config.json"


def export(found: Checkpoint, layout: str, out: Path) -> None:
    """Write a checkpoint in another layout into a new folder; UnsupportedError if it cannot be.

    layout: one of `folders.LAYOUTS`
    """
    check_layout(layout)
    if found.inputs:
        name, rounded = next(iter(found.inputs.items()))
        msg = (
            f"{found.folder}: inputs of {name} and {len(found.inputs) - 1} other layers are "
            f"{rounded.label} when it runs, which no exported layout can say: it would be another "
            f"model. Compress without `compress.inputs` (and `online: none`) to export the weights."
        )
        raise UnsupportedError(msg)
    if found.cache:
        msg = (
            f"{found.folder}: keeps keys and values as {found.cache.label} when it runs, which no "
            f"exported layout can say. Compress without `compress.cache` to export the weights."
        )
        raise UnsupportedError(msg)

    def fill(place: Path) -> None:
        place.mkdir()
        WRITERS[layout](found, place)
        copy_companions(found.folder, place)
        origin.write(found, place)
        sums.write(place)

    make_folder(out, fill)


def write_gptq(found: Checkpoint, place: Path, version: Version) -> None:
    """`qweight`, `qzeros`, `scales` and `g_idx` of every linear, and quantize_config.json."""
    settings = gptq_settings(found, version)
    files: dict[str, str] = {}
    _save(place, "rest", found.rest(), files)
    for number, names in enumerate(_by_file(found)):
        tensors: dict[str, Tensor] = {}
        for name in names:
            try:
                parts = write_layer(found.weight(name), version)
            except UnsupportedError as error:
                msg = f"{name} ({found.formats[name].label}): {error}"
                raise UnsupportedError(msg) from error
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        _save(place, f"block-{number:05d}", tensors, files)
    _write_config(found, place, settings)
    write_json(place / QUANTIZE_CONFIG, settings)
    _write_index(place, files)


def write_dense(found: Checkpoint, place: Path) -> None:
    """The model as plain floats: the values of the compressed weights without their size."""
    model = found.load_model()
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(place)


def write_compressed_tensors(found: Checkpoint, place: Path) -> None:
    """`weight_packed`, `weight_scale` and so on of every linear, and what config.json says."""
    dtype = DTYPES[found.dtype]
    linears = _linears(found, dtype)
    files: dict[str, str] = {}
    schemes = {}
    _save(place, "rest", found.rest(), files)
    for number, names in enumerate(_by_file(found)):
        tensors: dict[str, Tensor] = {}
        for name in names:
            weight = found.weight(name)
            try:
                schemes[name] = compressed_tensors.scheme(weight)
                parts = compressed_tensors.write_layer(weight, dtype)
            except UnsupportedError as error:
                msg = f"{name} ({found.formats[name].label}): {error}"
                raise UnsupportedError(msg) from error
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        _save(place, f"block-{number:05d}", tensors, files)
    if not any(schemes.values()):
        msg = f"{found.folder}: no layer is quantized. Export as huggingface for plain floats."
        raise UnsupportedError(msg)
    others = [name for name in linears if name not in schemes]
    _write_config(found, place, compressed_tensors.section(schemes, others))
    _write_index(place, files)


def _linears(found: Checkpoint, dtype: torch.dtype) -> list[str]:
    """Linears of the model; UnsupportedError where a compressed layer is none, as in GPT-2."""
    modules = dict(skeleton(found.config, dtype).named_modules())
    other = next((name for name in found.formats if not isinstance(modules[name], Linear)), None)
    if other is not None:
        msg = (
            f"{other}: is a {type(modules[other]).__name__}, and readers of compressed-tensors "
            f"quantize Linear only. Export as huggingface for plain floats."
        )
        raise UnsupportedError(msg)
    return [name for name, module in modules.items() if isinstance(module, Linear)]


WRITERS: Mapping[str, Callable[[Checkpoint, Path], None]] = {
    "compressed-tensors": write_compressed_tensors,
    "gptq": lambda found, place: write_gptq(found, place, "gptq"),
    "gptq_v2": lambda found, place: write_gptq(found, place, "gptq_v2"),
    "huggingface": write_dense,
}


def gptq_settings(found: Checkpoint, version: Version) -> dict[str, Any]:
    """quantize_config.json: one set of options for all layers, or UnsupportedError naming two."""
    grids = {name: _grid(name, layout) for name, layout in found.formats.items()}
    first = next(iter(grids))
    other = next((name for name in grids if grids[name].bits != grids[first].bits), None)
    if other is not None:
        raise _different(found, first, other)
    indexes = {name: _group_index(found.weight(name)) for name in grids if grids[name].indexed}
    size = _group_size(found, grids, indexes)
    ordered = any(
        not torch.equal(index.long(), torch.arange(len(index)) // size)
        for index in indexes.values()
    )
    one_each = all(grid.scale_shape[1] == 1 for grid in grids.values())
    return {
        "bits": grids[first].bits,
        "group_size": -1 if one_each else size,
        # Zero points are stored in any case: one layer that needs them speaks for all.
        "sym": all(grid.symmetric for grid in grids.values()),
        "desc_act": ordered,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": version,
        "meta": {"quantizer": [f"trinity:{metadata.version(PACKAGE)}"]},
    }


def _grid(name: str, layout: WeightFormat) -> Grid:
    if layout.grid is None or layout.adapter is not None or layout.outliers is not None:
        msg = (
            f"{name}: is {layout.label}, and the GPTQ format holds quantized weights without "
            f"adapters and outliers only. Export as huggingface for plain floats."
        )
        raise UnsupportedError(msg)
    return layout.grid


def _group_size(found: Checkpoint, grids: Mapping[str, Grid], indexes: Mapping[str, Tensor]) -> int:
    """The one number of inputs from which readers find the groups of every layer.

    A layer with one group has any that is no smaller than its inputs.
    """
    least: dict[str, int] = {}
    for name, grid in grids.items():
        d_in, groups = found.formats[name].shape[1], grid.scale_shape[1]
        least[name] = d_in // groups
        if name in indexes:
            least[name] = _indexed_size(name, indexes[name], groups)
    largest = max(least, key=lambda name: least[name])
    for name, grid in grids.items():
        if grid.scale_shape[1] > 1 and least[name] != least[largest]:
            raise _different(found, name, largest)
    return least[largest]


def _indexed_size(name: str, index: Tensor, groups: int) -> int:
    """Inputs of a group, of which the last may have fewer.  index: int32 [in]"""
    counts = sorted(torch.bincount(index, minlength=groups).tolist(), reverse=True)
    if len(set(counts[:-1])) > 1 or counts[-1] == 0:
        msg = (
            f"{name}: has groups of {counts[0]} to {counts[-1]} inputs, where the GPTQ format has "
            f"one `group_size`. Export as huggingface for plain floats."
        )
        raise UnsupportedError(msg)
    return int(counts[0])


def _group_index(weight: CompressedWeight) -> Tensor:
    base = weight.values if isinstance(weight, Sparse) else weight
    assert isinstance(base, Quantized)  # its format has a grid and no adapter
    assert base.group_index is not None
    return base.group_index


def _different(found: Checkpoint, first: str, second: str) -> UnsupportedError:
    return UnsupportedError(
        f"{found.folder}: the GPTQ format has one set of options for all layers, but {first} is "
        f"{found.formats[first].label} and {second} is {found.formats[second].label}."
    )


def _by_file(found: Checkpoint) -> list[list[str]]:
    """Compressed layers, those of one block together."""
    blocks: dict[str, list[str]] = {}
    for name in found.formats:
        parts = (place for key, place in found.places.items() if key.startswith(f"{name}."))
        blocks.setdefault(next(place for place in parts if place != REST), []).append(name)
    return list(blocks.values())


def _save(place: Path, name: str, tensors: Mapping[str, Tensor], files: dict[str, str]) -> None:
    path = place / f"model-{name}.safetensors"
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    files.update(dict.fromkeys(tensors, path.name))


def _write_index(place: Path, files: Mapping[str, str]) -> None:
    size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    write_json(place / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(files)})


def _write_config(found: Checkpoint, place: Path, settings: Mapping[str, Any]) -> None:
    config = json.loads((found.folder / CONFIG).read_text(encoding="utf-8"))
    write_json(place / CONFIG, {**config, "quantization_config": dict(settings)})
