"""A compressed checkpoint as a compiled, verified module: lowering through the stage store."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trinity.harness import checkpoint
from trinity.harness.engine import DecodeSession, Engine, MeasurementPath, TorchEngine
from trinity.harness.models import DTYPES, dtype_name, group_attention, read_config, skeleton
from trinity.harness.outside import model_outside, outside_of
from trinity.harness.progress import Reporter
from trinity.harness.recipe import LowerSpec
from trinity.harness.records.record import LoweringInfo
from trinity.harness.store import StageStore, read_json, write_json
from trinity.lowering import lower as lowering
from trinity.lowering import targets
from trinity.lowering.kernels.choose import storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import InputFormat, format_of

if TYPE_CHECKING:
    from trinity.lowering.invoke import CompiledModel

PARAMETERS, REPORT = "parameters.safetensors", "verification.json"


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a checkpoint's folder, its bytes' fingerprint, a name for progress."""

    folder: Path
    fingerprint: str
    name: str


class IreeEngine:
    """A compiled module as something to measure."""

    name = "iree"

    def __init__(self, compiled: "CompiledModel", path: MeasurementPath) -> None:
        """path: 'compiled', or 'kernel' where our own kernels do the products."""
        self.compiled, self.path = compiled, path
        self.max_length = compiled.max_length

    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq]  ->  float32 [seq, vocab]"""
        return self.compiled.logits(ids[None])[0]

    def session(self) -> DecodeSession:
        """New, empty sequences: as many as the module was compiled for."""
        return self.compiled.session()


@dataclass(eq=False)
class Lowered:
    """A compiled module with its parameters, both in the store, checked against torch.

    fingerprint: of the module, the parameters and the check   info: what the record says
    """

    module: Path
    parameters: Path
    target: targets.Target
    fingerprint: str
    info: LoweringInfo

    @cached_property
    def engine(self) -> Engine:
        """The module on its device, loaded when first asked for."""
        compiled = _compiled(self.module, self.parameters, self.target)
        return IreeEngine(compiled, compiled.path)


def plan_of(folder: Path, spec: LowerSpec, batch: int = 1) -> lowering.Lowering:
    """What the module depends on: architecture, formats, target, sizes; not the weights.

    batch: sequences that the module takes at once
    """
    config = read_config(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    longest = min(spec.context, config.max_position_embeddings)
    compressed = checkpoint.Checkpoint(folder)
    check_inputs(compressed.inputs, f"checkpoint {folder}")
    lengths = (1, min(spec.length, longest))
    target, dtype = targets.get(spec.target), dtype_name(config)
    outside = outside_of(folder, target)
    heads, tables = (
        {name: format_of(weight) for name, weight in of.items()}
        for of in (outside.heads, outside.tables)
    )
    formats = {
        name: replace(found, inputs=compressed.inputs.get(name))
        for name, found in compressed.formats.items()
    }
    return lowering.Lowering(config, formats, target, lengths, longest, dtype, batch, heads, tables)


def check_inputs(inputs: Mapping[str, InputFormat], where: str) -> None:
    """UnsupportedError where a model declares inputs that modules cannot round."""
    for layer, rounded in inputs.items():
        if rounded.kind != "int8":
            msg = (
                f"{where}: the inputs of {layer} are {rounded.label}, and compiled modules round "
                f"to int8 only. Leave `lower:` out and evaluate it with the torch engine, or "
                f"compress with `inputs: {{kind: int8}}`."
            )
            raise UnsupportedError(msg)


def compile_module(
    folder: Path, plan: lowering.Lowering, store: StageStore, reporter: Reporter
) -> Path:
    """The stage of the compiled module: every stage's text, `module.vmfb`, `module.json`."""

    def write(place: Path) -> None:
        started = time.perf_counter()
        model = skeleton(plan.config, DTYPES[plan.dtype])
        group_attention(model)
        lowered = lowering.lower(model, plan, lambda stage: reporter.say(f"lower: {stage}"))
        lowered.save(place)
        for stage in ("torch", "annotated", "storage", "target"):
            (place / f"{stage}.mlir").write_text(getattr(lowered, stage))
        write_json(place / "timing.json", {"compile_s": time.perf_counter() - started})

    return store.fetch("module", plan.fingerprint(), write)


def write_parameters(
    folder: Path, module: Path, plan: lowering.Lowering, store: StageStore, fingerprint: str
) -> Path:
    """The stage of the module's parameters: the checkpoint's weights in the module's storage.

    module: of one sequence; modules of the same checkpoint for more read the same parameters
    """

    def write(place: Path) -> None:
        names = json.loads((module / "module.json").read_text())["parameters"]
        outside = outside_of(folder, plan.target)
        weights = dict(checkpoint.Checkpoint(folder).weights()) | outside.heads | outside.tables
        model = model_outside(folder)
        lowering.write_parameters(place / PARAMETERS, model, weights, names, plan)

    inputs = {"checkpoint": fingerprint, "module": module.name}
    return store.fetch("parameters", inputs, write)


def lower(
    subject: Subject,
    spec: LowerSpec,
    store: StageStore,
    torch_engine: Callable[[], TorchEngine],
    reporter: Reporter,
    batch: int = 1,
) -> Lowered:
    """Compile a checkpoint and compare its logits with torch's; LoweringError if they differ.

    torch_engine: made only if the comparison is not in the store   batch: sequences at once
    """
    # Imported here: a run whose comparison is in the store needs no runtime.
    from trinity.lowering.check import allowed, verify

    plan = plan_of(subject.folder, spec, batch)
    module = compile_module(subject.folder, plan, store, reporter)
    single = module
    if batch > 1:
        single = compile_module(subject.folder, plan_of(subject.folder, spec), store, reporter)
    parameters = write_parameters(subject.folder, single, plan, store, subject.fingerprint)
    inputs = {"module": module.name, "parameters": parameters.name}

    def write(place: Path) -> None:
        sequences = f", {batch} sequences" if batch > 1 else ""
        reporter.say(f"{subject.name}: comparing compiled logits with torch{sequences}")
        compiled = _compiled(module, parameters / PARAMETERS, plan.target)
        model = torch_engine().model
        weights = dict(checkpoint.Checkpoint(subject.folder).weights())
        weights |= outside_of(subject.folder, plan.target).heads
        inputs = checkpoint.Checkpoint(subject.folder).inputs
        ids = check_ids(plan)
        errors = verify(compiled, model, weights, ids, inputs)
        tolerance = allowed(model, weights, ids, inputs)
        write_json(place / REPORT, {"errors": errors, "tolerance": tolerance})

    verified = store.fetch("verification", inputs, write)
    report = read_json(verified / REPORT)
    fingerprint = plan.fingerprint()
    info = LoweringInfo(
        target=plan.target.name,
        fingerprint=module.name,
        compiler=fingerprint["versions"]["iree-base-compiler"],
        flags=fingerprint["target"]["flags"],
        bits_per_weight=module_bits(plan),
        outside={name: f.label for name, f in {**plan.heads, **plan.tables}.items()},
        logit_errors=report["errors"],
        tolerance=report["tolerance"],
        compile_s=read_json(module / "timing.json")["compile_s"],
    )
    return Lowered(module, parameters / PARAMETERS, plan.target, verified.name, info)


def module_bits(plan: lowering.Lowering) -> float:
    """Bits per weight of the compressed linears in the module's storage."""
    sizes = {name: f.shape[0] * f.shape[1] for name, f in plan.formats.items()}
    bits = sum(storage_of(f, plan.target).bits() * sizes[name] for name, f in plan.formats.items())
    return bits / sum(sizes.values())


def check_ids(plan: lowering.Lowering) -> Tensor:
    """The tokens of the comparison, fixed.  ->  int64 [batch, seq]

    One sequence goes past one prefill call.  Several are shorter, or their logits would fill the
    memory; they differ from each other.
    """
    length = min(max(plan.lengths) // plan.batch + 16, plan.shape(1).max_length)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(plan.config.vocab_size, (plan.batch, length), generator=generator)


def _compiled(module: Path, parameters: Path, target: targets.Target) -> "CompiledModel":
    # Imported here: a run whose numbers are all in the store needs no runtime.
    from trinity.lowering.invoke import CompiledModel

    return CompiledModel(module, parameters, target)
