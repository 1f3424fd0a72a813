"""This project's methods beside what other packages made of the same layers and the same model.

    python benchmarks/conformance/compare.py FOLDER [--json FILE]

Runs in an environment that has the project, after `given.py` and one or more of `*_weights.py` on
the same folder.  Every model is measured by the project's own suites: the weights of the others are
put into the model that ours are in.
"""

import argparse
import hashlib
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from given import run_of, tokens_of
from safetensors.torch import load_file
from torch import Tensor

from trinity.harness.accuracy import suites
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.models.decoder import set_weight
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.recipes import recipe
from trinity.harness.records import measurement
from trinity.harness.records.environment import environment, numerics
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.verdicts import outcome_text
from trinity.harness.runs.run import Finished, Run
from trinity.harness.statistics import comparison
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore, default_root, write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.terminal.progress import Reporter
from trinity.methods import registry
from trinity.methods.contract import LayerStats, Reported
from trinity.methods.errors import ConfigError, TrinityError
from trinity.methods.formats import CompressedWeight, Dense, Quantized

PACKAGES = ("llmcompressor", "gptqmodel")


def ours(steps: list[dict[str, Any]], weight: Tensor, inputs: Tensor) -> CompressedWeight:
    """A case on one layer.  weight: [out, in]  inputs: [tokens, in]"""
    stats = LayerStats(
        tokens=len(inputs),
        x_norm=inputs.double().square().sum(0).sqrt().float(),
        H=2 / len(inputs) * inputs.T @ inputs,
    )
    current: CompressedWeight = Dense(weight)
    for step in steps:
        options = {key: value for key, value in step.items() if key != "method"}
        config = registry.configure(step["method"], options)
        made = registry.get(step["method"]).compress(weight, current, stats, config)
        current = made.weight if isinstance(made, Reported) else made
    return current


def same(mine: CompressedWeight, theirs: Tensor) -> float:
    """Share of entries with the same code, or of a pruned weight with the same mask.

    theirs: [out, in], dequantized; with scales in another type a code is what is nearest
    """
    values = mine.dequantize()
    if isinstance(mine, Quantized):
        step = mine.scale.float().repeat_interleave(values.shape[1] // mine.scale.shape[1], 1)
        return float(((values - theirs).abs() < step / 2).float().mean())
    return float(((values == 0) == (theirs == 0)).float().mean())


def layers(folder: Path, package: str, case: str) -> dict[str, dict[str, float]]:
    """Agreement and relative output errors of single layers, by layer."""
    given = load_file(folder / "given" / "layers.safetensors")
    found = {}
    for name, theirs in load_file(folder / package / "layers" / f"{case}.safetensors").items():
        weight, inputs = given[f"{name}.W"], given[f"{name}.X"]
        mine, norm = ours(CASES[case], weight, inputs), (inputs @ weight.T).norm()
        error, other = (
            float((inputs @ (values - weight).T).norm() / norm)
            for values in (mine.dequantize(), theirs)
        )
        found[name] = {"same": same(mine, theirs), "error": error, "their_error": other}
    return found


def weights_of(place: Path) -> Mapping[str, Tensor]:
    """All linears of a model that another package made: plain floats, or a GPTQ checkpoint.

    place: without the ending of a file of floats  ->  layer -> [out, in]
    """
    if not place.is_dir():
        return load_file(place.with_suffix(".safetensors"))
    data = {"model": {"id": str(place)}, "compress": {"steps": [{"method": "gptq-checkpoint"}]}}
    imported = Run(recipe.parse(data, str(place)), StageStore(default_root()), Reporter())
    checkpoint = Checkpoint.open(imported.compress())
    return {name: weight.dequantize() for name, weight in checkpoint.weights()}


def measured_with(run: Run, weights: Mapping[str, Tensor]) -> list[Measurement]:
    """The run's accuracy suites on its model with other weights in all its linears."""
    checkpoint = Checkpoint.open(run.compress())
    if set(weights) != set(checkpoint.formats):
        odd = sorted(set(weights) ^ set(checkpoint.formats))
        msg = f"the weights are of other layers than the model's: {', '.join(odd[:3])}."
        raise ConfigError(msg)
    assert run.recipe.evaluate is not None
    specs = run.recipe.evaluate.suites
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())

    def write(folder: Path) -> None:
        model = checkpoint.load_model()
        for name, weight in weights.items():
            set_weight(model.get_submodule(name), weight, torch.float32)
        engine = TorchEngine(model, checkpoint.context, "simulated")
        tokenizer = tokenizer_of(run.compress())
        found = [m for spec in specs for m in suites.run(spec, engine, tokenizer)]
        measurement.save(folder, found)

    # A stage, like what is measured of ours: of several seeds, a killed run goes on.
    inputs = {
        "checkpoint": run.compress().name,
        "weights": digest.hexdigest(),
        "suites": [spec.model_dump(mode="json") for spec in specs],
        "numerics": numerics(torch.device("cpu")),
        "code": own_code.sha256(suites, TorchEngine),
    }
    return measurement.load(run.store.fill("conformance", inputs, write))


def models(
    folder: Path, package: str, case: str, seed: int = 0
) -> tuple[dict[str, Any], list[comparison.Pair]]:
    """Agreement by layer and measurements of a whole model of both, and the pairs to be judged.

    seed: of the calibration windows, which the folder was made with
    """
    run = run_of(case, seed)
    if not torch.equal(tokens_of(run), load_file(folder / "given" / "ids.safetensors")["ids"]):
        msg = f"{folder}: was made from other calibration tokens. Run given.py again (seed {seed})."
        raise ConfigError(msg)
    finished: Finished = run.finish()
    weights = weights_of(folder / package / "models" / case)
    theirs = measured_with(run, weights)
    mine = finished.record.measurements
    found = {
        "same": {
            name: same(w, weights[name]) for name, w in Checkpoint.open(run.compress()).weights()
        },
        "ours": [m.model_dump(mode="json") for m in mine],
        "theirs": [m.model_dump(mode="json") for m in theirs],
    }
    return found, comparison.pairs(mine, theirs)


def measure(folder: Path) -> dict[str, Any]:
    """Everything that is in the folder, as plain data."""
    found: dict[str, Any] = {"layers": {}, "models": {}, "versions": {}}
    judged: list[tuple[str, comparison.Pair]] = []
    for package in PACKAGES:
        if not (folder / package).is_dir():
            continue
        found["versions"][package] = (
            (folder / package / "versions.txt").read_text(encoding="utf-8").split("\n")[:-1]
        )
        for case in CASES:
            if (folder / package / "layers" / f"{case}.safetensors").is_file():
                key = f"{package} {case}"
                print(key, file=sys.stderr)
                found["layers"][key] = layers(folder, package, case)
                found["models"][key], pairs = models(folder, package, case)
                judged += [(key, pair) for pair in pairs]
    outcomes = comparison.judge([pair for _, pair in judged])
    for (key, _), outcome in zip(judged, outcomes, strict=True):
        found["models"][key].setdefault("outcomes", []).append(outcome.model_dump(mode="json"))
    dense = run_of(None)
    drawn = dense.draw_calibration()
    return {
        "schema": "conformance/1",
        "command": " ".join(["python", "benchmarks/conformance/compare.py", *sys.argv[1:]]),
        "cases": CASES,
        "dense": [m.model_dump(mode="json") for m in dense.finish().record.measurements],
        "model": {"id": dense.recipe.model.id, "sha256": dense.source.sha256},
        "calibration": drawn[1] if drawn else None,
        **found,
        "environment": environment(),
    }


def tables(found: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| single layers | same mask or codes, least | layer errors, largest relative difference |",
        "|---|---:|---:|",
    ]
    for key, by_layer in found["layers"].items():
        least = min(one["same"] for one in by_layer.values())
        apart = max(abs(one["error"] / one["their_error"] - 1) for one in by_layer.values())
        lines.append(f"| {key} | {100 * least:.3f}% | {apart:.1e} |")
    lines += [
        "",
        "| whole model | same mask or codes, mean (least) | measured | theirs | ours "
        "| ours to theirs |",
        "|---|---:|---|---:|---:|---|",
    ]
    for key, one in found["models"].items():
        shares = [100 * share for share in one["same"].values()]
        for theirs, outcome in zip(one["theirs"], one["outcomes"], strict=True):
            said = outcome_text(comparison.Outcome.model_validate(outcome))
            lines.append(
                f"| {key} | {statistics.fmean(shares):.2f}% ({min(shares):.2f}%) "
                f"| {theirs['name']} | {theirs['value']:.2f} | {outcome['ours']:.2f} | {said} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Two Markdown tables on stdout, a record in --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    options = parser.parse_args()
    hush_libraries()
    torch.set_grad_enabled(False)
    try:
        found = measure(options.folder)
    except TrinityError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(tables(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
