"""How fast our Vulkan kernels are, against the compiler's own code for the same weight.

Products of one shape, and decoding of a random Llama of two blocks.  Of each, our kernels, the
compiler's code on the same format, and the compiler's code on dense float32 are timed in turn, in
one process, by the clock on the wall: threads that wait for Mesa's device spin, and would count as
work.  So nothing else should run.  Mesa's llvmpipe, which Debian's mesa-vulkan-drivers installs, is
a processor: there only ratios between code for that device mean something, and nothing for a GPU.

    python benchmarks/vulkan_kernels.py --shape 2048 2048 --rows 1 8 --repeats 7 --json FILE
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from trinity.harness.records.environment import environment
from trinity.harness.statistics.intervals import paired_ratio
from trinity.harness.store.stages import write_json
from trinity.lowering.graph.annotate import function_name
from trinity.lowering.lower import Lowering, lower
from trinity.lowering.module import check
from trinity.lowering.module.invoke import CompiledModel
from trinity.lowering.module.random_weights import random_weight
from trinity.lowering.parameters import write_parameters
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.formats import NM, Floats, Grid, WeightFormat

OURS = targets.get("vulkan")
COMPILED = replace(OURS, kernels=None)
GROUP = 128
TOLERANCE = 1e-5  # of the largest output
Call = Callable[[], object]


def main() -> None:
    """Time, print a table, and write the record."""
    options = parse()
    shape = tuple(options.shape)
    found = []
    for name, weight_format in formats(shape).items():
        for rows in options.rows:
            calls = {"ours": product(weight_format, OURS, rows)}
            calls["compiled"] = product(weight_format, COMPILED, rows)
            calls["dense"] = product(WeightFormat(shape, Floats("float32")), COMPILED, rows)
            found.append(timed(f"{name}, M = {rows}", calls, options.repeats))
    for name in formats(shape):
        calls = {
            "ours": decode(options.width, name, OURS),
            "compiled": decode(options.width, name, COMPILED),
            "dense": decode(options.width, None, COMPILED),
        }
        found.append(timed(f"decode, {name}", calls, options.repeats))
    if options.json:
        record = {
            "schema": "vulkan-kernel-speed/2",
            "command": f"python benchmarks/vulkan_kernels.py {' '.join(map(str, words(options)))}",
            "environment": environment(),
            "measurements": found,
        }
        write_json(options.json, record)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[2048, 2048], help="out and in")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="rows of the input, M")
    parser.add_argument("--width", type=int, default=1024, help="of the model's hidden states")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def words(options: argparse.Namespace) -> list[object]:
    """The command line again, without the file."""
    start = ["--shape", *options.shape, "--rows", *options.rows]
    return [*start, "--width", options.width, "--repeats", options.repeats]


def formats(shape: tuple[int, ...]) -> dict[str, WeightFormat]:
    """The formats that are timed, by a short name."""
    out, d_in = shape
    grid = Grid(4, True, (out, d_in // GROUP), "float16")
    int4 = WeightFormat((out, d_in), grid)
    return {"int4": int4, "2:4 int4": replace(int4, pattern=NM(2, 4))}


def product(weight_format: WeightFormat, target: targets.Target, rows: int) -> Call:
    """A call of one linear, once it agrees with float64."""
    weight = random_weight(weight_format)
    error = check.linear_error(weight, target, rows)
    if not error < TOLERANCE:
        raise SystemExit(f"{weight_format.label}: error {error:.1e}, nothing was timed")
    module = check.linear_module(weight_format, target, rows)
    x = torch.randn(rows, weight_format.shape[1])
    tensors = (x, *storage_of(weight_format, target).pack(weight).values())
    given, name = [module.put(tensor) for tensor in tensors], function_name(weight_format, rows)
    return lambda: module.fetch(module.call(name, given))


def decode(width: int, name: str | None, target: targets.Target) -> Call:
    """One step of a Llama of two blocks whose linears have a format, dense without a name."""
    model, plan = decoder(width, name, target, 64)
    lowered = lower(model, plan)
    folder = Path(tempfile.mkdtemp(prefix="trinity-vulkan-"))
    lowered.save(folder)
    weights = {key: random_weight(of) for key, of in plan.formats.items()}
    path = folder / "parameters.safetensors"
    write_parameters(path, model, weights, lowered.parameters, plan)
    session = CompiledModel(folder, path, target).session()
    return lambda: session.step(torch.tensor([7]))


def decoder(
    width: int, name: str | None, target: targets.Target, places: int
) -> tuple[nn.Module, Lowering]:
    """The Llama and how a step of one token is lowered.  places: of its caches"""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=places,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    linears = {
        key: tuple(layer.weight.shape)
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".layers." in key
    }
    found = {key: formats(shape)[name] for key, shape in linears.items()} if name else {}
    return model, Lowering(config, found, target, (1,), places)


def timed(name: str, calls: dict[str, Call], repeats: int) -> dict[str, object]:
    """Milliseconds of every call, in turn, and the others over ours."""
    samples: dict[str, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            samples[key].append(1000 * (time.perf_counter() - start))
    speed = {key: paired_ratio(of, samples["ours"]) for key, of in samples.items() if key != "ours"}
    ratios = {key: median(samples[key]) / median(samples["ours"]) for key in speed}
    said = ", ".join(
        f"{ratios[key]:.2f} x {key} " + (f"[{of.low:.2f}, {of.high:.2f}]" if of else "")
        for key, of in speed.items()
    )
    print(f"| {name} | {said} |", flush=True)
    return {"name": name, "samples_ms": samples, "speedup": ratios}


if __name__ == "__main__":
    main()
