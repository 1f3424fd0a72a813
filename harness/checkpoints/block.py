"""One compressed block on disk: its packed weights, and what compression did to each layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from trinity.harness.records import products
from trinity.harness.store.stages import read_json, write_json
from trinity.methods.contract import LayerStats
from trinity.methods.formats import (
    CompressedWeight,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    sparsity_of,
    unpack,
)
from trinity.methods.transforms import Fold

WEIGHTS, LAYERS, TIMING = "block.safetensors", "layers.json", "timing.json"
SCALES = "scales.safetensors"
PANEL = 512  # inputs: smaller ones save more products, and run slower


def layer_report(W: Tensor | None, weight: CompressedWeight, stats: LayerStats) -> dict[str, Any]:
    """What compression did to one layer: relative error, sparsity, bits, format.

    W: the original weight, or None where an imported checkpoint does not hold it
    """
    if W is None:
        error, norm = None, "unknown: the checkpoint holds no original weight"
    else:
        error, norm = relative_error(W, weight, stats.H)
    return {
        "relative_error": error,
        "norm": norm,
        "sparsity": sparsity_of(weight),
        "bits_per_weight": bits_per_weight(weight),
        "format": format_of(weight).to_json(),
    }


def relative_error(W: Tensor, weight: CompressedWeight, H: Tensor | None) -> tuple[float, str]:
    """|W' - W| / |W|, at the layer's output if H is known, and the name of the norm."""
    delta = weight.dequantize().to(W.device) - W
    if H is not None:
        error = float(_at_outputs(delta, H) / _at_outputs(W, H).clamp_min(1e-30))
        return max(error, 0.0) ** 0.5, "hessian"
    error = float(delta.square().sum() / W.square().sum().clamp_min(1e-30))
    return error**0.5, "frobenius"


def _at_outputs(W: Tensor, H: Tensor) -> Tensor:
    """|X W^T|^2, from H = X^T X.  These products are most of what a report takes, and H is
    symmetric: a pair of different inputs is multiplied once and counts twice.
    """
    total = W.new_zeros(())
    for start in range(0, len(H), PANEL):
        panel = W[:, start : start + PANEL]
        below = H[start:, start : start + PANEL].contiguous()
        with products.fastest():
            made = functional.linear(panel.contiguous(), below)
        made *= W[:, start:]
        total += 2 * made.sum() - made[:, : panel.shape[1]].sum()
    return total


def save_block(
    folder: Path, weights: Mapping[str, CompressedWeight], layers: Mapping[str, Any]
) -> None:
    """Write one block's packed weights and its report."""
    tensors = {
        f"{name}.{part}": tensor.cpu().contiguous()
        for name, weight in weights.items()
        for part, tensor in pack(weight).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / LAYERS, dict(layers))


def load_block(folder: Path, device: str = "cpu") -> dict[str, CompressedWeight]:
    """Read one block's weights."""
    tensors = load_file(folder / WEIGHTS, device=device)
    weights = {}
    for name, report in read_json(folder / LAYERS).items():
        parts = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        weights[name] = unpack(WeightFormat.from_json(report["format"]), parts)
    return weights


def save_scales(folder: Path, scales: Sequence[Mapping[Fold, Tensor]]) -> None:
    """Write the scales that were moved between layers of a block, one set after the other.

    No scales, no file.
    """
    tensors = {
        f"{number}.{fold.into}": scale.cpu().float().contiguous()
        for number, some in enumerate(scales)
        for fold, scale in some.items()
    }
    if tensors:
        save_file(tensors, folder / SCALES, metadata={"format": "pt"})


def load_scales(folder: Path, folds: Sequence[Fold]) -> list[dict[Fold, Tensor]]:
    """Read what `save_scales` wrote.  folds: those of the block"""
    if not (folder / SCALES).is_file():
        return []
    of = {fold.into: fold for fold in folds}
    found: dict[int, dict[Fold, Tensor]] = {}
    for key, scale in load_file(folder / SCALES).items():
        number, _, into = key.partition(".")
        found.setdefault(int(number), {})[of[into]] = scale
    return [found[number] for number in sorted(found)]
