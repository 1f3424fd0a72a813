"""Folders that a user asks for: compressed, compiled and exported checkpoints."""

import shutil
from pathlib import Path
from typing import Any

from trinity.harness.checkpoints import exporting
from trinity.harness.checkpoints.block import TIMING
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.latency import memory
from trinity.harness.modules.module_stages import (
    PARAMETERS,
    Subject,
    compile_checkpoint,
    module_bits,
)
from trinity.harness.recipes.recipe import CalibrationSpec, LowerSpec, Recipe
from trinity.harness.runs import lowered, memory_plan
from trinity.harness.runs.measure import Measuring
from trinity.harness.runs.run import Run
from trinity.harness.sources import sources
from trinity.harness.store import sums
from trinity.harness.store.stages import MANIFEST, StageStore
from trinity.harness.store.writing import make_folder
from trinity.harness.terminal.progress import Reporter
from trinity.harness.texts import corpora, default_text
from trinity.lowering.targets import targets
from trinity.methods import registry
from trinity.methods.contract import BlockMethod, CheckpointSource, Method
from trinity.methods.errors import ConfigError
from trinity.methods.transforms import TransformMethod


def compress_to(asked: Recipe, out: Path, store: StageStore, reporter: Reporter) -> dict[str, Any]:
    """One method on one model, into a new folder."""
    (step,) = asked.compress.steps
    method = registry.get(step.method)
    instead = ""
    if isinstance(method, (Method, BlockMethod, TransformMethod)) and method.needs:
        asked, instead = _with_text(asked)
    if instead:
        reporter.write(instead)  # a quiet command says it too
    if isinstance(method, CheckpointSource) and asked.calibration is not None:
        msg = f"method '{step.method}' reads finished checkpoints and uses no calibration data."
        raise ConfigError(msg)
    run = Run(asked, store, reporter)
    memory_plan.check(memory_plan.peaks(run, memory.resident_bytes()), run.device)
    finished = run.compress()

    def fill(folder: Path) -> None:
        # A copy, not links: what a user does to it must not reach the store.
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(MANIFEST, TIMING))
        sums.write(folder)

    make_folder(out, fill)
    compressed = Checkpoint.open(out)
    result = {
        "checkpoint": str(out),
        "bits_per_weight": compressed.bits_per_weight,
        "layers": len(compressed.formats),
    }
    if instead:
        result["calibration"] = instead
    imported = compressed.summary.get("imported")
    if imported:
        result |= {key: imported[key] for key in ("dense", "decoded", "unmapped")}
    return result


def _with_text(asked: Recipe) -> tuple[Recipe, str]:
    """The recipe with a calibration text, and one line if that is not the default one."""
    default = asked.calibration or CalibrationSpec()
    text = default_text.first_at_hand(default)
    said = ""
    if text.dataset != default.dataset:
        missing = corpora.at_hand(default.dataset, default.split)
        said = (
            f"{missing}, and no hub gives it: calibrating on "
            f"{text.samples} windows of {text.dataset} ({text.rule})"
        )
    return asked.model_copy(update={"calibration": text}), said


def lower_to(
    folder: Path,
    spec: LowerSpec,
    emit: str | None,
    out: Path,
    store: StageStore,
    reporter: Reporter,
) -> dict[str, Any]:
    """Compile a checkpoint into a new folder: module, parameters, and one stage's text if asked."""
    compressed = Checkpoint.open(folder)
    subject = Subject(compressed, sources.folder_sha256(folder), folder.name)
    errors = None
    # Imported here: it loads the runtime, which other outputs do without.
    from trinity.lowering.module import devices

    if devices.available(targets.get(spec.target, spec.cpu)):
        made = Measuring(subject, spec, store, reporter).lower()
        assert made is not None
        module, parameters, errors = made.module, made.parameters, made.info.logit_errors
        bits, vocabulary = made.info.bits_per_weight, made.vocabulary
    else:
        compiled = compile_checkpoint(subject, spec, store, reporter)
        module, parameters = compiled.module, compiled.parameters / PARAMETERS
        bits, vocabulary = module_bits(compiled.plan), compiled.plan.config.vocab_size
    names = ["module.vmfb", "module.json"]
    if emit and emit != "vmfb":
        names.append(f"{emit}.mlir")

    def fill(place: Path) -> None:
        place.mkdir()
        for name in names:
            shutil.copyfile(module / name, place / name)
        shutil.copyfile(parameters, place / PARAMETERS)
        lowered.write(place, subject, spec.target, vocabulary, errors)
        sums.write(place)

    make_folder(out, fill)
    return {
        "target": spec.target,
        "files": ", ".join(sorted(path.name for path in out.iterdir())),
        "bits_per_weight_checkpoint": round(compressed.bits_per_weight, 4),
        "bits_per_weight_module": round(bits, 4),
        "logit_errors": errors,
    }


def export_to(folder: Path, layout: str, out: Path) -> dict[str, Any]:
    """A compressed checkpoint in another program's layout, in a new folder."""
    exporting.export(Checkpoint.open(folder), layout, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"checkpoint": str(out), "format": layout, "size_bytes": size}
