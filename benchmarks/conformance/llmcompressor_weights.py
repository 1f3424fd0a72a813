"""What llm-compressor makes of the layers and of the whole model that `given.py` wrote.

    python benchmarks/conformance/llmcompressor_weights.py FOLDER [CASE ...]

Runs in llm-compressor's environment and imports nothing of this project.  Writes, for every case,
FOLDER/llmcompressor/{layers,models}/CASE.safetensors: the weights [out, in] of the single layers by
its functions, and of all linears of the model by its whole pipeline (`oneshot`), in float32.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cases import BITS, CASES, GROUP
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

DAMPING, BLOCK_SIZE = 0.01, 128
GRID = QuantizationArgs(num_bits=BITS, strategy="group", group_size=GROUP, symmetric=True)
BLOCKS = r"re:.*\.layers\.\d+$"


def linear(weight: Tensor) -> nn.Linear:
    """A module that holds a weight, as llm-compressor takes it."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module


def zeros(pattern: str) -> tuple[float, int, int]:
    """Sparsity, and n and m of an N:M pattern or twice 0, as their functions take them."""
    if pattern.endswith("%"):
        return float(pattern[:-1]) / 100, 0, 0
    n, m = map(int, pattern.split(":"))
    assert m == 2 * n, "they count the pruned ones of a group, this project the kept ones"
    return n / m, n, m


def wanda(weight: Tensor, inputs: Tensor, pattern: str) -> Tensor:
    """Their Wanda on one layer."""
    module = linear(weight)
    scalars = wanda_sparsify.make_empty_row_scalars(module)
    scalars, _ = wanda_sparsify.accumulate_row_scalars(inputs, module, scalars, 0)
    return wanda_sparsify.sparsify_weight(module, {module: scalars}, *zeros(pattern))


def sparsegpt(weight: Tensor, inputs: Tensor, pattern: str) -> Tensor:
    """Their SparseGPT on one layer."""
    module = linear(weight)
    hessian = sgpt_sparsify.make_empty_hessian(module)
    hessian, _ = sgpt_sparsify.accumulate_hessian(inputs, module, hessian, 0)
    _loss, pruned = sgpt_sparsify.sparsify_weight(
        module, {module: hessian}, *zeros(pattern), BLOCK_SIZE, DAMPING, False
    )
    return pruned


def gptq(weight: Tensor, inputs: Tensor) -> Tensor:
    """Their GPTQ on one layer, with scales of the dense weight."""
    rows, columns = weight.shape
    scale = weight.reshape(rows, -1, GROUP).abs().amax(-1) / (2 ** (BITS - 1) - 0.5)
    hessian = 2 / len(inputs) * inputs.T @ inputs
    zero = torch.zeros_like(scale, dtype=torch.int8)
    found, *_ = quantize_weight(
        weight[None].clone(), hessian[None].clone(), scale[None], zero[None], None, GRID
    )
    return found[0].reshape(rows, columns)


def layer_function(step: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Their function for one layer."""
    if step["method"] == "gptq":
        return gptq
    prune = {"wanda": wanda, "sparsegpt": sparsegpt}[step["method"]]
    return lambda weight, inputs: prune(weight, inputs, step["pattern"])


def modifier(step: dict[str, Any]) -> Any:
    """Their step of a recipe (their modifiers have no common public type)."""
    if step["method"] == "gptq":
        scheme = QuantizationScheme(targets=["Linear"], weights=GRID)
        return GPTQModifier(
            config_groups={"all": scheme},
            ignore=["lm_head"],
            actorder=None,
            dampening_frac=DAMPING,
            block_size=BLOCK_SIZE,
        )
    sparsity, n, m = zeros(step["pattern"])
    common = {"sparsity": sparsity, "mask_structure": f"{n}:{m}", "targets": [BLOCKS]}
    if step["method"] == "wanda":
        return WandaPruningModifier(**common)
    return SparseGPTModifier(dampening_frac=DAMPING, block_size=BLOCK_SIZE, **common)


def whole_model(folder: Path, ids: Tensor, step: dict[str, Any]) -> dict[str, Tensor]:
    """All linears of the blocks after their pipeline.  ids: int64 [samples, seqlen]"""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    windows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    oneshot(
        model=model,
        dataset=DataLoader(windows, batch_size=1),
        recipe=[modifier(step)],
        pipeline="sequential",
    )
    return {
        name: module.weight.detach().float().contiguous().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def main() -> None:
    """Write the weights."""
    folder = Path(sys.argv[1])
    given, out = folder / "given", folder / "llmcompressor"
    for kind in ("layers", "models"):
        (out / kind).mkdir(parents=True)
    # `given.py --no-layers` writes none, for many calibration seeds of whole models.
    path = given / "layers.safetensors"
    layers = load_file(path) if path.is_file() else {}
    ids = load_file(given / "ids.safetensors")["ids"]
    for case in sys.argv[2:] or CASES:
        (step,) = CASES[case]
        run = layer_function(step)
        made = {
            key.removesuffix(".W"): run(weight, layers[key.removesuffix("W") + "X"])
            for key, weight in layers.items()
            if key.endswith(".W")
        }
        if made:
            save_file(made, out / "layers" / f"{case}.safetensors")
        found = whole_model(given / "model", ids, step)
        save_file(found, out / "models" / f"{case}.safetensors")
    versions = [f"{name} {version(name)}" for name in ("llmcompressor", "transformers", "torch")]
    (out / "versions.txt").write_text("\n".join(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
