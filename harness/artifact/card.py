"""A model's page on the Hugging Face hub, from the record of the run that made it.

`README.md` with the hub's metadata, and one file a task in `.eval_results/`, as the hub reads them.
"""

from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from trinity.harness.artifact import belongs
from trinity.harness.artifact.licences import UNKNOWN
from trinity.harness.figures.shown import Shown
from trinity.harness.records.facts import Questions
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report.measured import CALLED
from trinity.harness.report.numbers import interval_text, value_text
from trinity.harness.report.verdicts import ACCURACY
from trinity.harness.statistics.comparison import SIZES, SPEEDUP
from trinity.harness.store.stages import read_json
from trinity.harness.store.writing import write_text, writing
from trinity.methods.errors import ConfigError

CARD, RESULTS = "README.md", ".eval_results"
# Data sets of the hub, and the name of the part that a task reads.
HUB = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "boolq": ("google/boolq", "default"),
    "hellaswag": ("Rowan/hellaswag", "default"),
    "mmlu": ("cais/mmlu", "all"),
    "openbookqa": ("allenai/openbookqa", "main"),
    "piqa": ("ybisk/piqa", "plain_text"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
}


def write(folder: Path, found: Record, path: str, licence: str | None) -> list[Path]:
    """Write the card and the results into an exported checkpoint's folder; the files.

    path: of the record, to be named   licence: of the model, as the hub spells it, if it is known
    ConfigError if the folder holds no model, a card that is there already, or weights of which the
    record is not.
    """
    if not (folder / "config.json").is_file():
        msg = f"card {folder}: holds no config.json. Give a folder made by `trinity export`."
        raise ConfigError(msg)
    if (folder / CARD).exists():
        msg = f"card {folder}: has a {CARD} already. Remove it, or merge by hand from another copy."
        raise ConfigError(msg)
    belongs.check(folder, found, path)
    with writing(folder):
        write_text(folder / CARD, card(found, path, licence, _quantization(folder)))
        files = [folder / CARD]
        for name, entries in eval_results(found).items():
            place = folder / RESULTS / f"{name}.yaml"
            place.parent.mkdir(exist_ok=True)
            write_text(place, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
            files.append(place)
    return files


def card(found: Record, path: str, licence: str | None, quantization: str | None) -> str:
    """README.md, metadata first."""
    run = Shown(found, path, [])
    model = found.model
    is_of_hub = "/" in model.id and ":" not in model.id
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": model.id, "base_model_relation": "quantized"} if is_of_hub else {}),
        **({"license": licence} if licence else {}),
        "tags": ["compression", "trinity", *_methods(found)],
    }
    calibration = found.recipe.get("calibration")
    said = resources.files("trinity.harness.artifact").joinpath("CARD.md.txt")
    return Template(said.read_text(encoding="utf-8")).substitute(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        title=f"{model.label}, {run.name}",
        base=model.id,
        revision=model.revision or "as hashed",
        sha256=model.sha256,
        note=model.note or "none",
        steps=run.steps,
        pattern=run.pattern,
        bits=f"{found.checkpoint.bits_per_weight:.2f}",
        stored=f"{sum(found.checkpoint.stored_bytes.values()) / 2**20:.1f}",
        layout=quantization or "plain floats, dequantized: the values without their size",
        calibration=_calibrated(calibration),
        licence=licence or UNKNOWN,
        numbers="\n".join(_lines(found)),
        commit=found.environment.get("commit") or "unknown",
        record=path,
        recipe=yaml.safe_dump(found.recipe, sort_keys=False, allow_unicode=True).rstrip(),
    )


def eval_results(found: Record) -> dict[str, list[dict[str, Any]]]:
    """Task -> entries of its file in `.eval_results`; tasks that the hub has no data set of have
    none, and stand in the card alone.
    """
    # Imported here: it takes a second, and a record without tasks needs none.
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries: dict[str, list[dict[str, Any]]] = {}
    for m in found.measurements:
        if m.metric != "acc" or m.name not in HUB or m.value is None:
            continue
        asked = Questions.of(m)
        asked_of = f"{asked.num_fewshot}-shot, {len(m.samples)} questions"
        notes = f"{asked_of}, lm-eval {asked.lm_eval_version}, path {m.path}"
        dataset, task = HUB[m.name]
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=round(100 * m.value, 2),
            date=found.date,
            notes=f"{notes}, 95% interval {interval_text(m)} %",
        )
        entries[m.name] = list(eval_result_entries_to_yaml([entry]))
    return entries


def _lines(found: Record) -> list[str]:
    kept = [m for m in found.measurements if m.metric in (*ACCURACY, *SIZES, SPEEDUP)]
    return [f"| {_called(m)} | {value_text(m)} | {interval_text(m)} | {m.path} |" for m in kept]


def _called(m: Measurement) -> str:
    return " ".join(filter(None, [m.name, CALLED.get(m.metric, m.metric.replace("_", " "))]))


def _methods(found: Record) -> list[str]:
    steps = (found.recipe.get("compress") or {}).get("steps") or ()
    return sorted({str(step["method"]) for step in steps})


def _calibrated(spec: dict[str, Any] | None) -> str:
    if spec is None:
        return "none"
    return f"{spec['samples']} windows of {spec['seqlen']} tokens of {spec['dataset']}"


def _quantization(folder: Path) -> str | None:
    """How the folder's weights are stored, as its configuration says."""
    settings = read_json(folder / "config.json").get("quantization_config") or {}
    name = settings.get("quant_method")
    return None if name is None else str(name)
