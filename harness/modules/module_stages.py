"""A compressed checkpoint as a compiled, verified module: lowering through the stage store."""

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.engines.engine import DecodeSession, Engine, check_tokens
from trinity.harness.models.caching import Caching
from trinity.harness.models.decoder import group_attention, skeleton
from trinity.harness.models.model_config import DTYPES
from trinity.harness.modules.narrow_head import Outside, outside_of
from trinity.harness.recipes.recipe import LowerSpec
from trinity.harness.records.measurement import MeasurementPath
from trinity.harness.records.record import LoweringInfo
from trinity.harness.store import own_code
from trinity.harness.store.once import once
from trinity.harness.store.stages import StageStore, read_json, write_json
from trinity.harness.terminal.progress import Reporter
from trinity.lowering import lower as lowering
from trinity.lowering import parameters as module_parameters
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import cache_refusal, storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import InputFormat, format_of

if TYPE_CHECKING:
    from trinity.lowering.module.invoke import CompiledModel

PARAMETERS, REPORT, EXPORTED = "parameters.safetensors", "verification.json", "torch.mlir"


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: an opened checkpoint, its bytes' fingerprint, a name for progress."""

    checkpoint: Checkpoint
    fingerprint: str
    name: str


class IreeEngine:
    """A compiled module as something to measure."""

    name = "iree"

    def __init__(
        self, compiled: "CompiledModel", path: MeasurementPath, vocabulary: int | None = None
    ) -> None:
        """path: 'compiled', or 'kernel' where our own kernels do the products.

        vocabulary: the model's; a module reads other memory for a token that is beyond it
        """
        self.compiled, self.path, self.vocabulary = compiled, path, vocabulary
        self.max_length = compiled.max_length

    def logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [seq]  ->  float32 [seq, vocab]"""
        check_tokens(ids, self.vocabulary)
        return self.compiled.logits(ids[None])[0]

    def session(self) -> DecodeSession:
        """New, empty sequences: as many as the module was compiled for."""
        return IreeSession(self.compiled.session(), self.vocabulary)


class IreeSession:
    """Decoding by a compiled module, which is asked about tokens of its vocabulary only."""

    def __init__(self, session: DecodeSession, vocabulary: int | None) -> None:
        """session: the module's own   vocabulary: as of `IreeEngine`"""
        self.of_module, self.vocabulary = session, vocabulary

    def prefill(self, ids: Tensor) -> Tensor:
        """ids: int64 [batch, seq]  ->  float32 [batch, vocab]"""
        check_tokens(ids, self.vocabulary)
        return self.of_module.prefill(ids)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [batch]  ->  float32 [batch, vocab]"""
        check_tokens(tokens, self.vocabulary)
        return self.of_module.step(tokens)


@dataclass(eq=False)
class Lowered:
    """A compiled module with its parameters, both in the store, checked against torch.

    fingerprint: of the module, the parameters and the check   info: what the record says
    vocabulary: tokens that the model knows
    """

    module: Path
    parameters: Path
    target: targets.Target
    fingerprint: str
    info: LoweringInfo
    vocabulary: int

    @once
    def load(self) -> Engine:
        """The module on its device."""
        compiled = _loaded(self.module, self.parameters, self.target)
        return IreeEngine(compiled, compiled.path, self.vocabulary)

    def load_for_text(self) -> Engine:
        """The same: nothing is remembered of a text."""
        return self.load()


@dataclass(frozen=True, eq=False)
class Compiled:
    """A module with its parameters, each a stage of the store, not compared with torch yet.

    outside: head and embedding as the module stores them
    """

    plan: Lowering
    outside: Outside
    module: Path
    parameters: Path


def plan_of(checkpoint: Checkpoint, spec: LowerSpec, outside: Outside, batch: int = 1) -> Lowering:
    """What the module depends on: architecture, formats, target, sizes; not the weights.

    batch: sequences that the module takes at once
    """
    config = copy.deepcopy(checkpoint.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    longest = min(spec.context, checkpoint.context)
    heads, tables = (
        {name: format_of(weight) for name, weight in of.items()}
        for of in (outside.heads, outside.tables)
    )
    return Lowering(
        config,
        checkpoint.rounded_formats,
        targets.get(spec.target, spec.cpu),
        (1, min(spec.length, longest)),
        longest,
        checkpoint.dtype,
        batch,
        heads,
        tables,
        checkpoint.cache.format if checkpoint.cache else None,
    )


def check_inputs(inputs: Mapping[str, InputFormat], where: str) -> None:
    """UnsupportedError where a model declares inputs that modules cannot round."""
    for layer, rounded in inputs.items():
        if rounded.kind not in ("int8", None):
            msg = (
                f"{where}: the inputs of {layer} are {rounded.label}, and compiled modules round "
                f"to int8 only. Leave `lower:` out and evaluate it with the torch engine, or "
                f"compress with `inputs: {{kind: int8}}`."
            )
            raise UnsupportedError(msg)


def check_cache(cache: Caching | None, spec: LowerSpec, where: str, batch: int = 1) -> None:
    """UnsupportedError where a target's modules cannot keep keys and values as declared.

    batch: sequences at once, the most
    """
    if cache is None:
        return
    refused = cache_refusal(cache.format, targets.get(spec.target, spec.cpu))
    if refused is None and batch > 1:
        refused = f"kernels read caches of one sequence, not of {batch}"
    if refused:
        msg = (
            f"{where}: {cache.label}: {refused}. Leave `lower:` out and evaluate it with the torch "
            f"engine, or compile it for llvm-cpu, one sequence, with rtn-cache of 4 or 8 bits."
        )
        raise UnsupportedError(msg)


def compile_module(plan: Lowering, store: StageStore, reporter: Reporter) -> Path:
    """The stage of the compiled module: every stage's text, `module.vmfb`, `module.json`."""

    def write(place: Path) -> None:
        text = (export(plan, store, reporter) / EXPORTED).read_text(encoding="utf-8")
        started = time.perf_counter()
        lowered = lowering.lower_exported(text, plan, lambda stage: reporter.say(f"lower: {stage}"))
        lowered.save(place)
        for stage in ("torch", "annotated", "storage", "target"):
            (place / f"{stage}.mlir").write_text(getattr(lowered, stage), encoding="utf-8")
        write_json(place / "timing.json", {"compile_s": time.perf_counter() - started})

    inputs = {**plan.fingerprint(), "code": own_code.sha256(compile_module)}
    return store.fill("module", inputs, write)


def export(plan: Lowering, store: StageStore, reporter: Reporter) -> Path:
    """The stage of a model's text as torch exports it, one for checkpoints of any format."""

    def write(place: Path) -> None:
        reporter.say("lower: export")
        model = skeleton(plan.config, DTYPES[plan.dtype])
        group_attention(model)
        (place / EXPORTED).write_text(lowering.export(model, plan), encoding="utf-8")

    inputs = {**lowering.export_key(plan), "code": own_code.sha256(export)}
    return store.fill("exported", inputs, write)


def write_parameters(
    subject: Subject, outside: Outside, module: Path, plan: Lowering, store: StageStore
) -> Path:
    """The stage of the module's parameters: the checkpoint's weights in the module's storage.

    module: of one sequence; modules of the same checkpoint for more read the same parameters
    """

    def write(place: Path) -> None:
        names = json.loads((module / "module.json").read_text(encoding="utf-8"))["parameters"]
        weights = subject.checkpoint.reading({**outside.heads, **outside.tables})
        model = subject.checkpoint.model_outside()
        module_parameters.write_parameters(place / PARAMETERS, model, weights, names, plan)

    inputs = {
        "checkpoint": subject.fingerprint,
        "module": module.name,
        "code": own_code.sha256(write_parameters),
    }
    return store.fill("parameters", inputs, write)


def compile_checkpoint(
    subject: Subject, spec: LowerSpec, store: StageStore, reporter: Reporter, batch: int = 1
) -> Compiled:
    """Compile a checkpoint for a target, whether or not this machine can run it.

    batch: sequences at once
    """
    check_inputs(subject.checkpoint.inputs, f"checkpoint {subject.checkpoint.folder}")
    check_cache(subject.checkpoint.cache, spec, f"checkpoint {subject.checkpoint.folder}", batch)
    outside = outside_of(subject.checkpoint, targets.get(spec.target, spec.cpu))
    plan = plan_of(subject.checkpoint, spec, outside, batch)
    module = compile_module(plan, store, reporter)
    single = module if batch == 1 else compile_module(replace(plan, batch=1), store, reporter)
    parameters = write_parameters(subject, outside, single, plan, store)
    return Compiled(plan, outside, module, parameters)


def lower(
    subject: Subject,
    spec: LowerSpec,
    store: StageStore,
    reporter: Reporter,
    batch: int = 1,
) -> Lowered:
    """Compile a checkpoint and compare its logits with torch's; LoweringError if they differ.

    batch: sequences at once
    """
    compiled = compile_checkpoint(subject, spec, store, reporter, batch)
    inputs = {
        "module": compiled.module.name,
        "parameters": compiled.parameters.name,
        "code": own_code.sha256(lower),
    }

    def write(place: Path) -> None:
        sequences = f", {batch} sequences" if batch > 1 else ""
        reporter.say(f"{subject.name}: comparing compiled logits with torch{sequences}")
        write_json(place / REPORT, _compared(subject.checkpoint, compiled))

    verified = store.fill("verification", inputs, write)
    plan, parameters = compiled.plan, compiled.parameters / PARAMETERS
    info = _info(compiled, read_json(verified / REPORT))
    vocabulary = plan.config.vocab_size
    return Lowered(compiled.module, parameters, plan.target, verified.name, info, vocabulary)


def _compared(checkpoint: Checkpoint, compiled: Compiled) -> dict[str, dict[str, float] | float]:
    """How far the module's logits are from torch's, and how far they may be."""
    # Imported here: a run whose comparison is in the store needs no runtime.
    from trinity.lowering.module.check import Rounding, allowed, verify

    plan = compiled.plan
    module = _loaded(compiled.module, compiled.parameters / PARAMETERS, plan.target)
    model = checkpoint.model_outside()
    weights = checkpoint.reading(compiled.outside.heads)
    ids, rounding = check_ids(plan), Rounding(checkpoint.inputs)
    if checkpoint.cache:
        rounding = replace(rounding, floats=checkpoint.model_outside())
        checkpoint.cache.install(model)
    return {
        "errors": verify(module, model, weights, ids, rounding),
        "tolerance": allowed(model, weights, ids, rounding),
    }


def _info(compiled: Compiled, report: dict[str, Any]) -> LoweringInfo:
    """What the record says of a module.  report: of its comparison with torch"""
    plan, fingerprint = compiled.plan, compiled.plan.fingerprint()
    return LoweringInfo(
        target=plan.target.name,
        fingerprint=compiled.module.name,
        compiler=fingerprint["versions"]["iree-base-compiler"],
        flags=fingerprint["target"]["flags"],
        bits_per_weight=module_bits(plan),
        outside={name: f.label for name, f in {**plan.heads, **plan.tables}.items()},
        kernels=plan.paths,
        flavour=plan.flavour,
        logit_errors=report["errors"],
        tolerance=report["tolerance"],
        compile_s=read_json(compiled.module / "timing.json")["compile_s"],
    )


def module_bits(plan: Lowering) -> float:
    """Bits per weight of the compressed linears in the module's storage."""
    sizes = {name: f.shape[0] * f.shape[1] for name, f in plan.formats.items()}
    bits = sum(storage_of(f, plan.target).bits() * sizes[name] for name, f in plan.formats.items())
    return bits / sum(sizes.values())


def check_ids(plan: Lowering) -> Tensor:
    """The tokens of the comparison, fixed.  ->  int64 [batch, seq]

    One sequence goes past one prefill call.  Several are shorter, or their logits would fill the
    memory; they differ from each other.
    """
    length = min(max(plan.lengths) // plan.batch + 16, plan.shape(1).max_length)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(plan.config.vocab_size, (plan.batch, length), generator=generator)


def _loaded(module: Path, parameters: Path, target: targets.Target) -> "CompiledModel":
    # Imported here: a run whose numbers are all in the store needs no runtime.
    from trinity.lowering.module.invoke import CompiledModel

    return CompiledModel(module, parameters, target)
