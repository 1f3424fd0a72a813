"""The compressed checkpoint: a Hugging Face folder whose linear weights are packed.

    config.json                      the model's, with quantization_config.quant_method = "trinity"
    model-rest.safetensors           embeddings, norms, biases, head
    model-block-00000.safetensors    packed linears of a block, `<layer>.weight_packed` and so on
    model.safetensors.index.json     tensor -> file
    trinity.json                     recipe, fingerprints, per-layer results, versions
    tokenizer files

Safetensors and JSON only, never pickle.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.checkpoints.block import LAYERS, TIMING, WEIGHTS
from trinity.harness.models.caching import Caching
from trinity.harness.models.decoder import Decoder, cast, linear_shape, set_weight, skeleton, tie
from trinity.harness.models.folders import CONFIG, ORIGIN, OURS, TEMPLATES, companions
from trinity.harness.models.model_config import (
    DTYPES,
    context_length,
    dtype_name,
    read_config,
)
from trinity.harness.models.model_files import INDEX, index_files, opened
from trinity.harness.models.rotating import change_inputs
from trinity.harness.records import available
from trinity.harness.store import sums
from trinity.harness.store.stages import link_or_copy, read_json, write_json
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import CompressedWeight, InputFormat, WeightFormat, unpack

SUMMARY, REST = "trinity.json", "model-rest.safetensors"
# 1 had neither packed adapters nor scaled or rounded inputs, 2 no values but floats and grids, 3 no
# inputs that are turned and no cache; all are read as they are.
VERSION = 4
BEFORE = 3  # what is written where neither is declared, so that older readers take it
AGAIN = "Compress the model again."
ON_PURPOSE = f"If you changed the file on purpose, delete {sums.SUMS}."
# What a format of wrong values, or one that its tensors do not fit, ends in.
UNFIT = (TypeError, KeyError, ValueError, IndexError, AttributeError)
# Beside the weights in a folder, and about them: not copied with tokenizer and templates.
OF_WEIGHTS = (CONFIG, SUMMARY, ORIGIN, TIMING, "quantize_config.json", "quant_config.json")


def write(
    folder: Path,
    decoder: Decoder,
    blocks: list[Path],
    summary: Mapping[str, Any],
    inputs: Mapping[str, InputFormat] | None = None,
    decoded: Mapping[str, Tensor] | None = None,
    cache: Caching | None = None,
) -> None:
    """Assemble a checkpoint from finished block stages.

    blocks: stage folders, in order   summary: what `trinity.json` says beyond the layers
    inputs: what is done to inputs at run time, by layer
    decoded: weights outside the blocks that are not in the model's files as such
    cache: how keys and values are kept at run time; None as floats
    """
    rest = {**dict(decoder.uncompressed()), **(decoded or {})}
    save_file({name: t.cpu().contiguous() for name, t in rest.items()}, folder / REST)
    places = dict.fromkeys(rest, REST)
    layers: dict[str, Any] = {}
    for index, block in enumerate(blocks):
        name = f"model-block-{index:05d}.safetensors"
        link_or_copy(block / WEIGHTS, folder / name)
        with opened(folder / name) as stream:
            places.update(dict.fromkeys(stream.keys(), name))
        layers.update(read_json(block / LAYERS))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    config = json.loads((decoder.folder / CONFIG).read_text(encoding="utf-8"))
    config["dtype"] = str(decoder.dtype).removeprefix("torch.")
    # As the files have it, where they and the configuration disagreed.
    own_head = decoder.model.all_tied_weights_keys.keys() & (decoded or {}).keys()
    config["tie_word_embeddings"] = decoder.model.config.tie_word_embeddings and not own_head
    config["quantization_config"] = {
        "quant_method": OURS,
        "version": VERSION if cache or any(of.turned for of in (inputs or {}).values()) else BEFORE,
        "layers": {name: report["format"] for name, report in layers.items()},
    }
    if inputs:
        rounded = {name: found.to_json() for name, found in inputs.items()}
        config["quantization_config"]["inputs"] = rounded
    if cache:
        config["quantization_config"]["cache"] = cache.to_json()
    write_json(folder / CONFIG, config)
    write_json(folder / SUMMARY, {"version": BEFORE, "layers": layers, **summary})
    write_json(folder / TIMING, added_up([read_json(b / TIMING) for b in timed(blocks)]))
    copy_companions(decoder.folder, folder)


def copy_companions(source: Path, destination: Path) -> None:
    """Copy what goes with a model whatever its weights are stored as."""
    for path in companions(source):
        if path.name not in OF_WEIGHTS:
            shutil.copyfile(path, destination / path.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, destination / TEMPLATES)


def timed(blocks: list[Path]) -> list[Path]:
    """The blocks whose computing was timed: those of a checkpoint source were not."""
    return [block for block in blocks if (block / TIMING).is_file()]


def added_up(phases: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Seconds of each phase over all blocks, and the largest peak."""
    total: dict[str, dict[str, float]] = {}
    for block in phases:
        for name, found in block.items():
            so_far = total.setdefault(name, {"seconds": 0.0, "peak_bytes": 0})
            so_far["seconds"] += found["seconds"]
            so_far["peak_bytes"] = max(so_far["peak_bytes"], found["peak_bytes"])
    return total


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A compressed checkpoint, opened: what its files say, read once.

    Its weights stay on disk, and are decoded one layer at a time.

    config: the model's (transformers has no common type for it)   places: tensor -> file
    summary: what `trinity.json` says   formats: of every compressed linear, in the model's order
    inputs: what is done to inputs at run time, of the layers where something is
    cache: how keys and values are kept at run time; None as floats
    """

    folder: Path
    config: Any
    places: Mapping[str, str]
    summary: Mapping[str, Any]
    formats: Mapping[str, WeightFormat]
    inputs: Mapping[str, InputFormat]
    cache: Caching | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """folder: as `write` left it; RecordError says what is wrong with it, or with its files."""
        if found := sums.damage(folder):
            raise RecordError(f"checkpoint {folder}: is damaged: {found}. {AGAIN} {ON_PURPOSE}")
        try:
            quantization = read_json(folder / CONFIG)["quantization_config"]
            places, summary = read_json(folder / INDEX)["weight_map"], read_json(folder / SUMMARY)
            if quantization["quant_method"] != OURS:
                method = quantization["quant_method"]
                msg = f"checkpoint {folder}: quant_method is '{method}', not '{OURS}'."
                raise RecordError(msg)
            version = int(quantization["version"])
            layers = dict(quantization["layers"])
            inputs = dict(quantization.get("inputs", {}))
            declared = quantization.get("cache")
            if not isinstance(summary, dict):
                msg = f"{SUMMARY} holds no object"
                raise TypeError(msg)
            index_files(folder / INDEX)  # every name is of a file beside it
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"checkpoint {folder}: is incomplete or damaged ({error!r}). {AGAIN}"
            raise RecordError(msg) from error
        except ConfigError as error:
            msg = f"checkpoint {folder}: is incomplete or damaged. {AGAIN} ({error})"
            raise RecordError(msg) from error
        if version > VERSION:
            msg = (
                f"checkpoint {folder}: has version {version}, this trinity reads up to {VERSION}. "
                f"Upgrade with `pip install -U compression-trinity`."
            )
            raise RecordError(msg)
        config = read_config(folder)
        try:
            formats = {name: WeightFormat.from_json(data) for name, data in layers.items()}
            rounded = {name: InputFormat.from_json(data) for name, data in inputs.items()}
            cache = Caching.from_json(declared) if declared is not None else None
        except UNFIT as error:
            msg = f"checkpoint {folder}: its config.json has a format that is none ({error!r})."
            raise RecordError(f"{msg} {AGAIN}") from error
        return cls(folder, config, places, summary, formats, rounded, cache)

    @property
    def dtype(self) -> str:
        """'float32': the type of the model's parameters."""
        return dtype_name(self.config)

    @property
    def context(self) -> int:
        """Positions that the model was built for."""
        return context_length(self.config)

    @property
    def rounded_formats(self) -> dict[str, WeightFormat]:
        """Formats of every compressed linear with how its inputs are rounded, by name."""
        return {
            name: replace(of, inputs=self.inputs.get(name)) for name, of in self.formats.items()
        }

    def weight(self, name: str) -> CompressedWeight:
        """One layer's compressed weight."""
        parts = [
            key for key in self.places if key.startswith(f"{name}.") and self._is_part(key, name)
        ]
        tensors = {key.removeprefix(f"{name}."): self._read(key) for key in parts}
        try:
            return unpack(self.formats[name], tensors)
        except UNFIT as error:
            raise RecordError(self._misfit(f"{name}: {error!r}")) from error

    def weights(self) -> Iterator[tuple[str, CompressedWeight]]:
        """(name, weight) of every compressed layer, in the order of the model."""
        for name in self.formats:
            yield name, self.weight(name)

    def reading(self, others: Mapping[str, CompressedWeight] | None = None) -> "Reading":
        """Every compressed layer, each read when it is asked for, and some others beside them."""
        return Reading(self, others or {})

    def rest(self) -> dict[str, Tensor]:
        """Everything that is not a compressed linear: embeddings, norms, biases, head."""
        return {key: self._read(key) for key, place in self.places.items() if place == REST}

    def load_model(self) -> Any:
        """The model in torch with every weight dequantized: fake-quantised, for accuracy only.

        Inputs that the checkpoint declares turned or rounded are that before every product, and
        keys and values are rounded before attention reads them.
        -> a Hugging Face causal language model in eval mode; transformers has no type for it
        """
        model = self.model_outside()
        dtype = DTYPES[self.dtype]
        for name, weight in self.weights():
            where = f"checkpoint {self.folder}: the weight of {name}"
            values = cast(where, weight.dequantize(), dtype, AGAIN)
            set_weight(model.get_submodule(name), values, dtype)
            # What decoded it is larger than it, and would leave holes as large as the model.
            available.give_back()
        left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
        if left:
            msg = f"checkpoint {self.folder}: has no tensor for {', '.join(left[:3])}."
            raise RecordError(msg)
        change_inputs(model, self.inputs)
        if self.cache:
            self.cache.install(model)
        return model.eval()

    def model_outside(self) -> Any:
        """The model in torch, the weights of its compressed linears on `meta`.

        RecordError if what is stored does not fit config.json
        """
        rest = self.rest()
        if self.dtype not in DTYPES:
            raise RecordError(self._misfit(f"its dtype is {self.dtype}"))
        model = skeleton(self.config, DTYPES[self.dtype])
        try:
            model.load_state_dict(rest, assign=True, strict=False)
        except RuntimeError as error:
            raise RecordError(self._misfit(" ".join(str(error).split()))) from error
        tie(model, rest)
        modules = dict(model.named_modules())
        for name, layout in self.formats.items():
            shape = linear_shape(modules[name]) if name in modules else None
            if shape != layout.shape:
                found = f"{name} is {list(layout.shape)}, there {shape and list(shape)}"
                raise RecordError(self._misfit(found))
        return model

    def _misfit(self, reason: str) -> str:
        return f"checkpoint {self.folder}: does not fit its config.json ({reason}). {AGAIN}"

    def stored_bytes(self) -> dict[str, int]:
        """Bytes on disk by component: compressed linears, and the rest."""
        linears = rest = 0
        for name in set(self.places.values()):
            with self._opened(name) as stream:
                size = sum(stream.get_tensor(key).nbytes for key in stream.keys())  # noqa: SIM118  # not a dict
            if name == REST:
                rest += size
            else:
                linears += size
        return {"linears": linears, "rest": rest}

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the compressed linears over their dense weight count."""
        weights = sum(layout.shape[0] * layout.shape[1] for layout in self.formats.values())
        return 8 * self.stored_bytes()["linears"] / weights

    def _is_part(self, key: str, name: str) -> bool:
        return self.places[key] != REST and key.startswith(f"{name}.")

    def _read(self, key: str) -> Tensor:
        with self._opened(self.places[key]) as stream:
            tensor: Tensor = stream.get_tensor(key)
        if not tensor.is_floating_point() or tensor.itemsize == 1:
            return tensor
        return cast(f"checkpoint {self.folder}: tensor '{key}'", tensor, tensor.dtype, AGAIN)

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """A file of the checkpoint, as `opened` gives it."""
        try:
            with opened(self.folder / name) as stream:
                yield stream
        except ConfigError as error:
            msg = f"checkpoint {self.folder}: is incomplete or damaged. {AGAIN} ({error})"
            raise RecordError(msg) from error


class Reading(Mapping[str, CompressedWeight]):
    """A checkpoint's layers by name, none of which is kept: a model may be larger than memory."""

    def __init__(self, checkpoint: Checkpoint, others: Mapping[str, CompressedWeight]) -> None:
        """others: weights that are in memory"""
        self.checkpoint, self.others = checkpoint, others

    def __getitem__(self, name: str) -> CompressedWeight:
        """See `Checkpoint.weight`."""
        if name in self.others:
            return self.others[name]
        if name not in self.checkpoint.formats:
            raise KeyError(name)
        return self.checkpoint.weight(name)

    def __iter__(self) -> Iterator[str]:
        """In the order of the model, others last."""
        return iter([*self.checkpoint.formats, *self.others])

    def __len__(self) -> int:
        """Layers."""
        return len(self.checkpoint.formats) + len(self.others)
