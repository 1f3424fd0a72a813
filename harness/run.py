"""One recipe, start to end: calibrate, compress, lower, evaluate, time, record.

Every part is a stage of the store, keyed by all that it depends on, so a second run reads and a
killed run goes on.  Models are loaded only when a stage that needs one is missing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trinity.harness import calibration, checkpoint, data, plan, sources, tune
from trinity.harness.bench import check_batch
from trinity.harness.code import code_sha256, methods_sha256
from trinity.harness.compiled import Subject, check_inputs
from trinity.harness.imported import import_checkpoint
from trinity.harness.measure import Measuring, check_machine, context_length
from trinity.harness.models import DTYPES, Decoder
from trinity.harness.progress import Reporter
from trinity.harness.recipe import CalibrationSpec, CompressSpec, EvaluateSpec, Recipe
from trinity.harness.records.environment import environment, numerics
from trinity.harness.records.measurement import Measurement, seed_spread
from trinity.harness.records.record import CheckpointInfo, ModelInfo, Record
from trinity.harness.store import StageStore, read_json, write_json
from trinity.harness.walk import Walk
from trinity.methods.errors import ConfigError

COMPRESS_CODE = ("walk.py", "activations.py", "models.py", "plan.py", "checkpoint.py")


@dataclass(frozen=True, eq=False)
class Finished:
    """What a run leaves: its record, and the checkpoint's folder in the store."""

    record: Record
    checkpoint: Path


class Run:
    """The stages of one recipe.  Making a `Run` checks everything that needs no model weights."""

    def __init__(
        self,
        recipe: Recipe,
        store: StageStore,
        reporter: Reporter,
        dense: "Run | None" = None,
    ) -> None:
        """Raises before anything expensive: unknown methods and keys, shapes, data, targets.

        dense: the run of the uncompressed model, if one is there already
        """
        self.recipe, self.store, self.reporter = recipe, store, reporter
        self._dense = dense
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_machine(recipe.evaluate, recipe.lower)
        spec = recipe.model
        self.source = sources.resolve(spec.id, spec.revision, store, spec.training, reporter)
        self.decoder = Decoder(self.source.path, DTYPES[recipe.model.dtype], self.device)
        if recipe.bench is not None:
            check_batch(recipe.bench, recipe.lower, self.source.path, recipe.model.dtype)
        self.plan = plan.make(recipe.compress, self.decoder.layer_shapes())
        if recipe.lower is not None:
            check_inputs(self.plan.inputs, "the recipe's compress.inputs")
        self._check_calibration()

    def finish(self) -> Finished:
        """Do what is missing, and put the record together."""
        folder = self.checkpoint
        measurements = self._measure()
        lowered = self.measuring.lowered
        inputs = {
            "checkpoint": folder.name,
            "lowered": lowered.fingerprint if lowered else None,
            "recipe": self.recipe.model_dump(mode="json"),
            "measurements": [m.model_dump(mode="json") for m in measurements],
        }
        # The record is a stage too: a run that measured nothing new ends with the same record.
        stage = self.store.fetch(
            "record",
            inputs,
            lambda place: write_json(
                place / "record.json", self._record(measurements).model_dump(mode="json")
            ),
        )
        return Finished(Record.model_validate(read_json(stage / "record.json")), folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded once (transformers has no common type for it)."""
        return sources.tokenizer_of(self.source.path)

    @cached_property
    def calibration(self) -> tuple[Tensor, dict[str, Any]] | None:
        """Token ids [samples, seqlen] and where they are from; None if the recipe has none."""
        return self._drawn(self.recipe.calibration) if self.recipe.calibration else None

    def _drawn(self, spec: CalibrationSpec) -> tuple[Tensor, dict[str, Any]]:
        """Token ids [samples, seqlen] of a text, and where they are from."""
        corpus = data.load(spec.dataset, spec.split)
        described = spec.model_dump(mode="json", exclude={"seeds"})
        inputs = {
            "spec": described,
            "text": corpus.sha256,
            "model": self.source.sha256,
            "code": code_sha256("calibration.py", "data.py"),
        }

        def write(folder: Path) -> None:
            drawn = calibration.sample(
                corpus, self.tokenizer, spec.samples, spec.seqlen, spec.seed, spec.rule
            )
            save_file({"ids": drawn.ids}, folder / "ids.safetensors")
            write_json(folder / "ids.json", {"sha256": drawn.sha256})

        stage = self.store.fetch("calibration", inputs, write)
        description = {
            **described,
            "source": corpus.source,
            "text_sha256": corpus.sha256,
            "ids_sha256": read_json(stage / "ids.json")["sha256"],
        }
        return load_file(stage / "ids.safetensors")["ids"], description

    @cached_property
    def checkpoint(self) -> Path:
        """The compressed checkpoint's folder in the store."""
        if self.plan.source:
            return self._imported(self.plan.source)
        drawn, spec = self.calibration, self.recipe.calibration
        inputs = {
            "model": self.source.sha256,
            "dtype": self.recipe.model.dtype,
            "calibration": drawn[1]["ids_sha256"] if drawn else None,
            "numerics": numerics(self.device),
            "code": [code_sha256(*COMPRESS_CODE), methods_sha256(self.plan.methods)],
        }
        self._say_unused()
        walk = Walk(self.decoder, self.plan, drawn[0] if drawn else None, self.store, inputs)
        blocks = walk.run(lambda done, of: self._step("compress, blocks", done, of))
        last, tuned = blocks[-1].name, None
        if self.plan.tune is not None:
            last, blocks, tuned = self._tuned(blocks)
        summary = {
            "model": {"id": self.recipe.model.id, "sha256": self.source.sha256},
            # Without the other seeds: they make checkpoints of their own.
            "recipe": self.recipe.model_dump(mode="json", include={"model", "compress"})
            | {"calibration": spec.model_dump(mode="json", exclude={"seeds"}) if spec else None},
            "steps": self.plan.describe(sorted(self.plan.steps)),
            "tune": tuned,
            "calibration": drawn[1] if drawn else None,
            "numerics": inputs["numerics"],
            "versions": environment()["packages"],
        }
        return self.store.fetch(
            "checkpoint",
            {"last_block": last, "summary": summary},
            lambda folder: checkpoint.write(
                folder, self.decoder, blocks, summary, self.plan.inputs
            ),
        )

    def _tuned(self, blocks: list[Path]) -> tuple[str, list[Path], dict[str, Any]]:
        """The stage of the tuned model, its blocks, and what was done on which text."""
        step, spec = self.plan.tune, self._tuning_text()
        assert step is not None
        assert spec is not None
        sequences, text = self._drawn(spec)
        inputs = {
            "last_block": blocks[-1].name,
            "step": step.describe(),
            "text": text["ids_sha256"],
            "code": [code_sha256("tune.py", *COMPRESS_CODE), methods_sha256([step.method])],
        }

        def write(folder: Path) -> None:
            self.reporter.say(f"{self.recipe.name}: {step.name}")
            tune.tune(self.decoder, step, sequences, blocks, folder)

        stage = self.store.fetch("tuned", inputs, write)
        done = {**step.describe(), "data": text}
        return stage.name, tune.tuned_folders(stage, len(blocks)), done

    def _tuning_text(self) -> CalibrationSpec | None:
        spec = self.recipe.compress.tune
        return (spec.data if spec else None) or self.recipe.calibration

    def _say_unused(self) -> None:
        """Adapters in a model's files are no part of the model: only a source reads them."""
        used = set(self.decoder.tensor_names.values())
        unused = sorted(set(self.decoder.reader.places) - used)
        if unused:
            self.reporter.say(
                f"{self.recipe.name}: the files of {self.source.label} hold {len(unused)} tensors "
                f"that the model does not use: {plan.shortened(unused, 'tensors')}"
            )

    def _imported(self, planned: plan.PlannedSource) -> Path:
        """The checkpoint of a source's weights; says what of the file it could not use."""
        folder = import_checkpoint(
            self.decoder, planned.source, planned.config, self.source.sha256, self.store
        )
        lost = checkpoint.Checkpoint(folder).summary["imported"]["unmapped"]
        if lost:
            self.reporter.say(
                f"{self.recipe.name}: {planned.name} could not map {len(lost)} tensors of the "
                f"checkpoint: {plan.shortened(lost, 'tensors')}"
            )
        return folder

    @cached_property
    def measuring(self) -> Measuring:
        """The engines and suites of the finished checkpoint."""
        subject = Subject(self.checkpoint, self.checkpoint.name, self.recipe.name)
        return Measuring(
            subject, self.recipe.lower, self.store, self.reporter, lambda: self.dense.measuring
        )

    @cached_property
    def dense(self) -> "Run":
        """The same recipe without compression: what fidelity and speed-ups are against."""
        if self._is_dense:
            return self
        if self._dense is not None:
            return self._dense
        changes: dict[str, Any] = {"name": "dense", "compress": CompressSpec()}
        if self.recipe.calibration:
            seed = self.recipe.calibration.seed
            changes["calibration"] = self.recipe.calibration.with_seed(seed)
        return Run(self.recipe.model_copy(update=changes), self.store, self.reporter)

    @property
    def _is_dense(self) -> bool:
        """Whether nothing is done to the model: no step, source, rounded input or tuning."""
        plan = self.plan
        changed = plan.source or plan.inputs or plan.tune or any(plan.steps.values())
        return not changed

    @cached_property
    def siblings(self) -> list["Run"]:
        """The same recipe with each further calibration seed."""
        spec = self.recipe.calibration
        if spec is None or self._is_dense:
            return []
        return [
            Run(
                self.recipe.model_copy(
                    update={
                        "name": f"{self.recipe.name}, seed {seed}",
                        "calibration": spec.with_seed(seed),
                    }
                ),
                self.store,
                self.reporter,
                self.dense,
            )
            for seed in spec.seeds[1:]
        ]

    def _measure(self) -> list[Measurement]:
        found: list[Measurement] = []
        if self.recipe.evaluate:
            found += self._evaluate(self.recipe.evaluate)
        if self.recipe.bench:
            engines = ["torch", *(["iree"] if self.recipe.lower else [])]
            found += self.measuring.bench(self.recipe.bench, engines)
        return found

    def _evaluate(self, spec: EvaluateSpec) -> list[Measurement]:
        """Accuracy; with several calibration seeds, also how far it spreads between them."""
        found = self.measuring.evaluate(spec)
        others = [run.measuring.evaluate(spec) for run in self.siblings]
        if not others:
            return found
        spread = []
        for m, *rest in zip(found, *others, strict=True):
            values = [x.value for x in (m, *rest) if x.value is not None]
            known = len(values) == 1 + len(rest)
            spread.append(m.model_copy(update={"seeds": seed_spread(values)}) if known else m)
        return spread

    def _record(self, measurements: list[Measurement]) -> Record:
        compressed = checkpoint.Checkpoint(self.checkpoint)
        return Record(
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            recipe=self.recipe.model_dump(mode="json"),
            model=ModelInfo(
                id=self.recipe.model.id,
                label=self.source.label,
                revision=self.recipe.model.revision,
                sha256=self.source.sha256,
                note=self.source.note,
            ),
            calibration=self._described_calibration(),
            checkpoint=CheckpointInfo(
                fingerprint=self.checkpoint.name,
                bits_per_weight=compressed.bits_per_weight,
                stored_bytes=compressed.stored_bytes(),
                layers=compressed.summary["layers"],
                inputs={name: found.label for name, found in compressed.inputs.items()},
                imported=compressed.summary.get("imported"),
            ),
            lowering=self.measuring.lowered.info if self.measuring.lowered else None,
            measurements=measurements,
            environment=environment(),
        )

    def _described_calibration(self) -> dict[str, Any] | None:
        """The text, and of every seed the windows drawn and the checkpoint made with them."""
        if self.calibration is None:
            return None
        described = self.calibration[1]
        if self.siblings:
            runs = [self, *self.siblings]
            described = described | {"seeds": [run._of_seed() for run in runs]}
        return described

    def _of_seed(self) -> dict[str, Any]:
        assert self.calibration is not None
        description = self.calibration[1]
        return {
            "seed": description["seed"],
            "ids_sha256": description["ids_sha256"],
            "checkpoint": self.checkpoint.name,
        }

    def _step(self, what: str, done: int, of: int) -> None:
        self.reporter.step(f"{self.recipe.name}: {what}", done, of)

    def _check_calibration(self) -> None:
        spec, text = self.recipe.calibration, self._tuning_text()
        longest = context_length(self.source.path)
        for where, found in (("calibration", spec), ("compress.tune.data", text)):
            if found and found.seqlen > longest:
                msg = (
                    f"{where}.seqlen {found.seqlen} is longer than the {longest} positions of "
                    f"{self.source.label}. Choose a shorter one."
                )
                raise ConfigError(msg)
        if self.plan.tune and text is None:
            msg = (
                f"compress.tune: {self.plan.tune.name} needs text, and the recipe has neither "
                f"`compress.tune.data:` nor `calibration:`."
            )
            raise ConfigError(msg)
        if spec is None and self.plan.needs:
            names = sorted(
                {s.name for steps in self.plan.steps.values() for s in steps if s.method.needs}
            )
            msg = (
                f"method {', '.join(names)} needs calibration data, and the recipe has no "
                f"`calibration:`."
            )
            raise ConfigError(msg)
