"""A compressed checkpoint in a layout that other programs read."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.checkpoint import CONFIG, INDEX, NOT_TOKENIZER, REST, SUMMARY, Checkpoint
from trinity.harness.store import make_folder, write_json
from trinity.methods.errors import ConfigError, UnsupportedError, nearest
from trinity.methods.formats import WeightFormat
from trinity.methods.gptq_checkpoint import Version, write_layer

QUANTIZE_CONFIG = "quantize_config.json"


def export(folder: Path, layout: str, out: Path) -> None:
    """Write a checkpoint in another layout into a new folder; UnsupportedError if it cannot be.

    layout: a key of `LAYOUTS`
    """
    if layout not in LAYOUTS:
        msg = f"--format {layout}: there is no such format.{nearest(layout, sorted(LAYOUTS))} "
        raise ConfigError(f"{msg}Formats: {', '.join(sorted(LAYOUTS))}.")
    found = Checkpoint(folder)

    def fill(place: Path) -> None:
        place.mkdir()
        LAYOUTS[layout](found, place)
        for path in found.folder.iterdir():
            text = path.suffix in (".json", ".model", ".txt")
            if text and path.name not in (*NOT_TOKENIZER, SUMMARY):
                shutil.copyfile(path, place / path.name)

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
    size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    write_json(place / INDEX, {"metadata": {"total_size": size}, "weight_map": files})


def write_dense(found: Checkpoint, place: Path) -> None:
    """The model as plain floats: the values of the compressed weights without their size."""
    model = found.load_model()
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(place)


LAYOUTS: Mapping[str, Callable[[Checkpoint, Path], None]] = {
    "gptq": lambda found, place: write_gptq(found, place, "gptq"),
    "gptq_v2": lambda found, place: write_gptq(found, place, "gptq_v2"),
    "huggingface": write_dense,
}


def gptq_settings(found: Checkpoint, version: Version) -> dict[str, Any]:
    """quantize_config.json: one set of options for all layers, or UnsupportedError naming two."""
    kinds: dict[tuple[int, int, bool, bool], str] = {}
    for name, layout in found.formats.items():
        kinds.setdefault(_gptq_kind(name, layout), name)
    if len(kinds) > 1:
        first, second, *_ = kinds.values()
        msg = (
            f"{found.folder}: the GPTQ format has one set of options for all layers, but {first} "
            f"is {found.formats[first].label} and {second} is {found.formats[second].label}."
        )
        raise UnsupportedError(msg)
    ((bits, group_size, symmetric, indexed),) = kinds
    return {
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": indexed,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": version,
    }


def _gptq_kind(name: str, layout: WeightFormat) -> tuple[int, int, bool, bool]:
    """(bits, group size or -1, symmetric, by index) of one layer."""
    grid = layout.grid
    if grid is None or layout.adapter is not None:
        msg = (
            f"{name}: is {layout.label}, and the GPTQ format holds quantized weights without "
            f"adapters only. Export as huggingface for plain floats."
        )
        raise UnsupportedError(msg)
    groups = grid.scale_shape[1]
    size = -1 if groups == 1 else -(-layout.shape[1] // groups)
    return grid.bits, size, grid.symmetric, grid.indexed


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


def _write_config(found: Checkpoint, place: Path, settings: Mapping[str, Any]) -> None:
    config = json.loads((found.folder / CONFIG).read_text())
    write_json(place / CONFIG, {**config, "quantization_config": dict(settings)})
