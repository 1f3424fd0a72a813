"""The same layers through this project's methods and through llm-compressor's, compared.

    tox -e conformance -- FILE.safetensors     (a file that dump_layers.py wrote)

llm-compressor wants other versions of its dependencies than this project, so this runs in an
environment of its own, where only `trinity.methods` is used.  For each layer and method: the share
of mask (or code) entries that agree, and the layer error ||(W' - W) X|| / ||W X|| of both.
"""

import sys
from collections.abc import Callable

import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify
from safetensors.torch import load_file
from torch import Tensor, nn

from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.formats import Dense

BITS, GROUP = 4, 64
PATTERNS = {"2:4": (0.5, 2, 4), "50%": (0.5, 0, 0)}

Theirs = Callable[[Tensor, Tensor], Tensor]


def linear(weight: Tensor) -> nn.Linear:
    """A module that holds a weight, as llm-compressor takes it."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module


def wanda(pattern: str) -> Theirs:
    """Their Wanda."""
    sparsity, n, m = PATTERNS[pattern]

    def run(weight: Tensor, inputs: Tensor) -> Tensor:
        module = linear(weight)
        scalars = wanda_sparsify.make_empty_row_scalars(module)
        scalars, _ = wanda_sparsify.accumulate_row_scalars(inputs, module, scalars, 0)
        return wanda_sparsify.sparsify_weight(module, {module: scalars}, sparsity, n, m)

    return run


def sparsegpt(pattern: str) -> Theirs:
    """Their SparseGPT, blocks of 128, damping 0.01."""
    sparsity, n, m = PATTERNS[pattern]

    def run(weight: Tensor, inputs: Tensor) -> Tensor:
        module = linear(weight)
        hessian = sgpt_sparsify.make_empty_hessian(module)
        hessian, _ = sgpt_sparsify.accumulate_hessian(inputs, module, hessian, 0)
        _loss, pruned = sgpt_sparsify.sparsify_weight(
            module, {module: hessian}, sparsity, n, m, 128, 0.01, False
        )
        return pruned

    return run


def gptq(weight: Tensor, inputs: Tensor) -> Tensor:
    """Their GPTQ, symmetric groups with scales of the dense weight (static), no ordering."""
    rows, columns = weight.shape
    args = QuantizationArgs(num_bits=BITS, strategy="group", group_size=GROUP, symmetric=True)
    scale = weight.reshape(rows, -1, GROUP).abs().amax(-1) / (2 ** (BITS - 1) - 0.5)
    hessian = 2 / len(inputs) * inputs.T @ inputs
    zero = torch.zeros_like(scale, dtype=torch.int8)
    found, *_ = quantize_weight(
        weight[None].clone(), hessian[None].clone(), scale[None], zero[None], None, args
    )
    return found[0].reshape(rows, columns)


def ours(method: str, weight: Tensor, inputs: Tensor, options: dict[str, object]) -> Tensor:
    """This project's method on the same weight and inputs."""
    stats = LayerStats(
        tokens=len(inputs),
        x_norm=inputs.double().square().sum(0).sqrt().float(),
        x_mean_abs=inputs.abs().mean(0),
        H=2 / len(inputs) * inputs.T @ inputs,
        X=inputs,
    )
    config = registry.configure(method, options)
    found = registry.get(method).compress(weight, Dense(weight), stats, config)
    return found.dequantize()


def main() -> None:
    """Print a Markdown table."""
    tensors = load_file(sys.argv[1])
    layers = sorted({key.rpartition(".")[0] for key in tensors})
    cases: list[tuple[str, dict[str, object], Theirs]] = [
        ("wanda", {"pattern": pattern}, wanda(pattern)) for pattern in PATTERNS
    ]
    if "sparsegpt" in registry.names():
        cases += [("sparsegpt", {"pattern": p}, sparsegpt(p)) for p in PATTERNS]
    if "gptq" in registry.names():
        options = {"bits": BITS, "group_size": GROUP, "symmetric": True}
        options |= {"group_fit": "static", "scale_dtype": "float32"}
        cases.append(("gptq", options, gptq))
    print("| layer | method | same mask | equal entries | our error | their error |")
    print("|---|---|---:|---:|---:|---:|")
    for method, options, theirs in cases:
        for layer in layers:
            weight, inputs = tensors[f"{layer}.W"], tensors[f"{layer}.X"]
            mine, other = ours(method, weight, inputs, options), theirs(weight, inputs)
            norm = (inputs @ weight.T).norm()
            errors = [float((inputs @ (found - weight).T).norm() / norm) for found in (mine, other)]
            masks = float(((mine == 0) == (other == 0)).float().mean())
            equal = float(torch.isclose(mine, other, rtol=1e-4, atol=1e-6).float().mean())
            label = f"{method} {options.get('pattern', 'int4 group 64')}"
            print(
                f"| {layer} | {label} | {100 * masks:.2f}% | {100 * equal:.2f}% | "
                f"{errors[0]:.5f} | {errors[1]:.5f} |"
            )


if __name__ == "__main__":
    main()
