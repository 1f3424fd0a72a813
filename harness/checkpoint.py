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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trinity.harness.models import DTYPES, Decoder, dtype_name, read_config, set_weight, skeleton
from trinity.harness.store import MANIFEST, link_or_copy, read_json, write_json
from trinity.harness.walk import LAYERS, TIMING, WEIGHTS
from trinity.methods.errors import RecordError
from trinity.methods.formats import CompressedWeight, InputFormat, WeightFormat, unpack

CONFIG, SUMMARY, REST, INDEX = (
    "config.json",
    "trinity.json",
    "model-rest.safetensors",
    "model.safetensors.index.json",
)
VERSION = 2  # 1 had neither packed adapters nor scaled or rounded inputs; it is read as it is
NOT_TOKENIZER = (CONFIG, INDEX, MANIFEST, TIMING)


def write(
    folder: Path,
    decoder: Decoder,
    blocks: list[Path],
    summary: Mapping[str, Any],
    inputs: Mapping[str, InputFormat] | None = None,
) -> None:
    """Assemble a checkpoint from finished block stages.

    blocks: stage folders, in order   summary: what `trinity.json` says beyond the layers
    inputs: how inputs are rounded at run time, by layer
    """
    rest = dict(decoder.uncompressed())
    save_file({name: t.cpu().contiguous() for name, t in rest.items()}, folder / REST)
    places = dict.fromkeys(rest, REST)
    layers: dict[str, Any] = {}
    for index, block in enumerate(blocks):
        name = f"model-block-{index:05d}.safetensors"
        link_or_copy(block / WEIGHTS, folder / name)
        with safe_open(folder / name, framework="pt") as stream:
            places.update(dict.fromkeys(stream.keys(), name))
        layers.update(read_json(block / LAYERS))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    config = json.loads((decoder.folder / CONFIG).read_text())
    config["dtype"] = str(decoder.dtype).removeprefix("torch.")
    config["quantization_config"] = {
        "quant_method": "trinity",
        "version": VERSION,
        "layers": {name: report["format"] for name, report in layers.items()},
    }
    if inputs:
        rounded = {name: found.to_json() for name, found in inputs.items()}
        config["quantization_config"]["inputs"] = rounded
    write_json(folder / CONFIG, config)
    write_json(folder / SUMMARY, {"version": VERSION, "layers": layers, **summary})
    write_json(folder / TIMING, added_up([read_json(b / TIMING) for b in timed(blocks)]))
    for path in decoder.folder.iterdir():
        if path.suffix in (".json", ".model", ".txt") and path.name not in NOT_TOKENIZER:
            shutil.copyfile(path, folder / path.name)


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


def is_compressed(folder: Path) -> bool:
    """Whether a folder is one of our checkpoints rather than a plain model."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    config = json.loads(path.read_text())
    return (config.get("quantization_config") or {}).get("quant_method") == "trinity"


def _rounding(inputs: InputFormat) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def round_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs.rounded(args[0]), *args[1:])

    return round_first


class Checkpoint:
    """A compressed checkpoint on disk; weights are decoded one layer at a time."""

    def __init__(self, folder: Path) -> None:
        """folder: as `write` left it; RecordError says what is wrong with it."""
        self.folder = folder
        try:
            quantization = read_json(folder / CONFIG)["quantization_config"]
            self.places: dict[str, str] = read_json(folder / INDEX)["weight_map"]
            self.summary: dict[str, Any] = read_json(folder / SUMMARY)
            if quantization["quant_method"] != "trinity":
                method = quantization["quant_method"]
                msg = f"checkpoint {folder}: quant_method is '{method}', not 'trinity'."
                raise RecordError(msg)
            version = int(quantization["version"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            msg = (
                f"checkpoint {folder}: is incomplete or damaged ({error!r}). "
                f"Compress the model again."
            )
            raise RecordError(msg) from error
        if version > VERSION:
            msg = (
                f"checkpoint {folder}: has version {version}, this trinity reads up to {VERSION}. "
                f"Upgrade with `pip install -U compression-trinity`."
            )
            raise RecordError(msg)
        self.formats = {
            name: WeightFormat.from_json(data) for name, data in quantization["layers"].items()
        }
        self.inputs = {
            name: InputFormat.from_json(data)
            for name, data in quantization.get("inputs", {}).items()
        }

    def weight(self, name: str) -> CompressedWeight:
        """One layer's compressed weight."""
        parts = [
            key for key in self.places if key.startswith(f"{name}.") and self._is_part(key, name)
        ]
        tensors = {key.removeprefix(f"{name}."): self._read(key) for key in parts}
        return unpack(self.formats[name], tensors)

    def weights(self) -> Iterator[tuple[str, CompressedWeight]]:
        """(name, weight) of every compressed layer, in the order of the model."""
        for name in self.formats:
            yield name, self.weight(name)

    def rest(self) -> dict[str, Tensor]:
        """Everything that is not a compressed linear: embeddings, norms, biases, head."""
        return {key: self._read(key) for key, place in self.places.items() if place == REST}

    def load_model(self) -> Any:
        """The model in torch with every weight dequantized: fake-quantised, for accuracy only.

        Inputs that the checkpoint declares rounded are rounded before every product.
        -> a Hugging Face causal language model in eval mode (transformers has no common type for
        it)
        """
        config = read_config(self.folder)
        dtype = DTYPES[dtype_name(config)]
        model = skeleton(config, dtype)
        model.load_state_dict(self.rest(), assign=True, strict=False)
        for name, weight in self.weights():
            set_weight(model.get_submodule(name), weight.dequantize(), dtype)
        model.tie_weights()
        left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
        if left:
            msg = f"checkpoint {self.folder}: has no tensor for {', '.join(left[:3])}."
            raise RecordError(msg)
        for name, rounded in self.inputs.items():
            model.get_submodule(name).register_forward_pre_hook(_rounding(rounded))
        return model.eval()

    def stored_bytes(self) -> dict[str, int]:
        """Bytes on disk by component: compressed linears, and the rest."""
        linears = rest = 0
        for name in set(self.places.values()):
            with safe_open(self.folder / name, framework="pt") as stream:
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
        with safe_open(self.folder / self.places[key], framework="pt") as stream:
            tensor: Tensor = stream.get_tensor(key)
            return tensor
