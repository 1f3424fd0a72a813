"""One recipe, start to end: calibrate, compress, lower, evaluate, time, record.

Every part is a stage of the store, keyed by all that it depends on, so a second run reads and a
killed run goes on.  Models are loaded only when a stage that needs one is missing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trinity.harness.accuracy import suites
from trinity.harness.bench.bench import check_batch, check_positions
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.compress import calibration, plan, rotation, tune
from trinity.harness.compress.block_tuning import BlockTuning
from trinity.harness.compress.imported import check_same_shapes, import_checkpoint
from trinity.harness.compress.preparing import prepare
from trinity.harness.compress.walk import Walk
from trinity.harness.engines.engine import check_tokens
from trinity.harness.models import families
from trinity.harness.models.caching import caching_of
from trinity.harness.models.decoder import Decoder
from trinity.harness.models.model_config import DTYPES, context_length
from trinity.harness.modules.module_stages import Subject, check_cache, check_inputs
from trinity.harness.recipes.recipe import (
    CalibrationSpec,
    EvaluateSpec,
    Recipe,
    without_compression,
)
from trinity.harness.records.environment import environment, numerics, tokenizing
from trinity.harness.records.measurement import Measurement, with_spread
from trinity.harness.records.record import ModelInfo, Record
from trinity.harness.runs import recording, run_checks, tuning
from trinity.harness.runs.measure import Measuring
from trinity.harness.runs.requests import check_machine
from trinity.harness.sources import sources
from trinity.harness.store import own_code
from trinity.harness.store.once import once
from trinity.harness.store.spent import NOTHING, Seconds, since, together
from trinity.harness.store.stages import StageStore, read_json
from trinity.harness.terminal.progress import Reporter
from trinity.harness.texts import corpora, default_text
from trinity.lowering.lowerable import check_lowerable
from trinity.lowering.targets import targets
from trinity.methods import plugins, registry
from trinity.methods.plugins import Owner


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
        config = self.decoder.model.config
        if recipe.bench is not None:
            check_positions(recipe.bench, recipe.lower, config)
            check_batch(recipe.bench, recipe.lower, config, recipe.model.dtype)
        self.plan = plan.make(recipe.compress, self.decoder.layer_shapes())
        self.cache = caching_of(recipe.compress, config)
        rotation.check(self.plan.rotation, self.decoder)
        self.plan = rotation.with_turned_inputs(self.plan, self.decoder)
        if self.plan.source is None:
            self.decoder.check_weights()
        if recipe.lower is not None:
            check_lowerable(config)
            check_inputs(self.plan.inputs, "the recipe's compress.inputs")
            most = max(recipe.bench.batch) if recipe.bench else 1
            check_cache(self.cache, recipe.lower, "the recipe's compress.cache", most)
        run_checks.check_texts(recipe, self.plan, context_length(config))
        run_checks.check_dense_is_known(recipe, self.plan)
        run_checks.check_tokenizer(recipe, self.source.path)
        if recipe.model.dense and run_checks.compares(recipe):
            self.make_dense().decoder.check_weights()

    def finish(self, earlier: Mapping[str, Seconds] = NOTHING) -> Finished:
        """Do what is missing, and put the record together.

        earlier: what was spent on parts of this run in other processes
        """
        before = self.store.spent.parts()
        folder = self.compress()
        measurements = self._measure()
        measuring = self.make_measuring()
        lowered = measuring.lower()
        inputs = {
            "checkpoint": folder.name,
            "lowered": lowered.fingerprint if lowered else None,
            "recipe": self.recipe.model_dump(mode="json"),
            "measurements": [m.model_dump(mode="json") for m in measurements],
            "code": own_code.sha256(recording),
        }
        # The record is a stage too: a run that measured nothing new ends with the same record.
        write = partial(
            recording.write,
            recipe=self.recipe,
            model=ModelInfo(
                id=self.recipe.model.id,
                label=self.source.label,
                revision=self.source.commit or self.recipe.model.revision,
                sha256=self.source.sha256,
                note=self.source.note,
            ),
            calibration=self._described_calibration(),
            checkpoint=measuring.subject.checkpoint,
            lowering=lowered.info if lowered else None,
            measurements=measurements,
            plugins=self._plugins(),
            spent=together(earlier, since(before, self.store.spent.parts())),
        )
        stage = self.store.fill("record", inputs, write)
        return Finished(recording.read(stage), folder)

    @once
    def draw_calibration(self) -> tuple[Tensor, dict[str, Any]] | None:
        """Token ids [samples, seqlen] and where they are from; None if the recipe has none."""
        return self._drawn(self.recipe.calibration) if self.recipe.calibration else None

    def _drawn(self, spec: CalibrationSpec) -> tuple[Tensor, dict[str, Any]]:
        """Token ids [samples, seqlen] of a text, and where they are from."""
        asked, spec = (
            spec,
            default_text.bounded(spec, context_length(self.decoder.model.config), "calibration"),
        )
        corpus = corpora.load(spec.dataset, spec.split, self.reporter)
        described = spec.model_dump(mode="json", exclude={"seeds"})
        inputs = {
            "spec": described,
            "text": corpus.sha256,
            "model": self.source.sha256,
            "packages": tokenizing(),
            "code": own_code.sha256(calibration),
        }

        sizes = spec.model_dump(include={"samples", "seqlen", "seed", "rule"})
        write = partial(calibration.write, corpus=corpus, model=self.source.path, **sizes)
        stage = self.store.fill("calibration", inputs, write)
        ids = load_file(stage / calibration.IDS)["ids"]
        check_tokens(ids, self.decoder.model.config.vocab_size)
        description = {
            **described,
            "source": corpus.source,
            "text_sha256": corpus.sha256,
            "ids_sha256": read_json(stage / calibration.ABOUT)["sha256"],
        }
        if spec.seqlen < asked.seqlen:
            description["seqlen_bounded_from"] = asked.seqlen
            self.reporter.say(
                f"{self.recipe.name}: calibration windows of {spec.seqlen} tokens, which are all "
                f"that {self.source.label} reads; the default is {asked.seqlen}"
            )
        return ids, description

    @once
    def compress(self) -> Path:
        """Compress what the store lacks, block by block  ->  the folder in it of the checkpoint"""
        if self.plan.source:
            return self._imported(self.plan.source)
        # Of a model that nothing is done to, no text is a part: rows and seeds share it.
        spec = None if self._is_dense else self.recipe.calibration
        drawn = self.draw_calibration() if spec else None
        text = drawn[0] if drawn else None
        inputs = {
            "model": self.source.sha256,
            "dtype": self.recipe.model.dtype,
            "family": asdict(self.decoder.family),
            "calibration": drawn[1]["ids_sha256"] if drawn else None,
            "numerics": numerics(self.device),
            "code": own_code.sha256(Walk, methods=self.plan.methods),
        }
        self._say_unused()
        made = prepare(self.decoder, self.plan, text, self.store, inputs, self._step)
        self.plan = made.plan
        walk = Walk(self.decoder, made.plan, text, self.store, made.inputs, made.gradients)
        blocks = walk.run(lambda done, of: self._step("compress, blocks", done, of))
        last, tuned = blocks[-1].name, None
        if self.plan.tune is not None:
            last, blocks, tuned = self._tuned(blocks)
        commit = {"revision": self.source.commit} if self.source.commit else {}
        summary = {
            "model": {"id": self.recipe.model.id, "sha256": self.source.sha256, **commit},
            # Without the other seeds: they make checkpoints of their own.
            "recipe": self.recipe.model_dump(
                mode="json", include={"model", "compress"}, exclude={"model": {"dense"}}
            )
            | {"calibration": spec.model_dump(mode="json", exclude={"seeds"}) if spec else None},
            **self.plan.described(),
            "tune": tuned,
            "calibration": drawn[1] if drawn else None,
            "numerics": inputs["numerics"],
            "versions": environment()["packages"],
            "plugins": plugins.versions(self._makers()),
        }
        return self.store.fill(
            "checkpoint",
            {"last_block": last, "summary": summary, "code": own_code.sha256(checkpoint)},
            partial(
                checkpoint.write,
                decoder=self.decoder,
                blocks=blocks,
                summary=summary,
                inputs=self.plan.inputs,
                cache=self.cache,
            ),
        )

    def _tuned(self, blocks: list[Path]) -> tuple[str, list[Path], dict[str, Any]]:
        """The stage of the tuned model, its blocks, and what was done on which text."""
        step, spec = self.plan.tune, run_checks.tuning_text(self.recipe)
        assert step is not None
        assert spec is not None
        sequences, text = self._drawn(spec)
        done = {**step.describe(), "data": text}
        by_block = step.mode is not None
        inputs = {
            "step": step.describe(),
            "text": text["ids_sha256"],
            "code": own_code.sha256(BlockTuning if by_block else tune, methods=[step.method]),
        }
        if by_block:
            of_blocks = BlockTuning(self.decoder, step, sequences, self.store, inputs)
            found = of_blocks.run(blocks, lambda at, of: self._step("tune, blocks", at, of))
            return found[-1].name, found, done
        work = tuning.work(self.recipe)
        assert work is not None
        named = f"{self.recipe.name}: {step.name}, sequences"
        say = partial(self.reporter.counter, named, work.trained)
        write = partial(tune.tune, self.decoder, step, sequences, blocks, say=say)
        stage = self.store.fill("tuned", {**inputs, "last_block": blocks[-1].name}, write)
        return stage.name, tune.tuned_folders(stage, len(blocks)), done

    def _say_unused(self) -> None:
        """Adapters in a model's files are no part of the model: only a source reads them."""
        if unused := self.decoder.unused():
            self.reporter.say(
                f"{self.recipe.name}: the files of {self.source.label} hold {len(unused)} tensors "
                f"that the model does not use: {plan.shortened(unused, 'tensors')}"
            )

    def _imported(self, planned: plan.PlannedSource) -> Path:
        """The checkpoint of a source's weights; says what of the file it could not use."""
        folder = import_checkpoint(
            self.decoder,
            planned.source,
            planned.config,
            self.source.sha256,
            self.store,
            self.plan.inputs,
            self.cache,
        )
        lost = Checkpoint.open(folder).summary["imported"]["unmapped"]
        if lost:
            self.reporter.say(
                f"{self.recipe.name}: {planned.name} could not map {len(lost)} tensors of the "
                f"checkpoint: {plan.shortened(lost, 'tensors')}"
            )
        return folder

    @once
    def make_measuring(self) -> Measuring:
        """The engines and suites of the checkpoint, which is compressed first."""
        folder = self.compress()
        subject = Subject(Checkpoint.open(folder), folder.name, self.recipe.name)
        recipe, store, reporter = self.recipe, self.store, self.reporter
        return Measuring(subject, recipe.lower, store, reporter, self._measure_dense)

    @once
    def make_dense(self) -> "Run":
        """The same recipe without compression: what fidelity and speed-ups are against."""
        named = self.recipe.model.dense
        if self._is_dense and named is None:
            return self
        if self._dense is not None:
            return self._dense
        found = Run(without_compression(self.recipe), self.store, self.reporter)
        if named is not None:
            check_same_shapes(self.recipe.model.id, self.decoder.model, found.decoder)
        return found

    def _measure_dense(self) -> Measuring:
        return self.make_dense().make_measuring()

    @property
    def _is_dense(self) -> bool:
        """Whether nothing is done to the model: no step, source, rounded input, cache or tuning."""
        plan = self.plan
        changed = plan.source or plan.inputs or plan.tune or plan.changes_weights or self.cache
        return not changed

    @once
    def make_siblings(self) -> list["Run"]:
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
                self.make_dense(),
            )
            for seed in spec.seeds[1:]
        ]

    def _measure(self) -> list[Measurement]:
        found: list[Measurement] = []
        if self.recipe.evaluate:
            found += self._evaluate(self.recipe.evaluate)
        if self.recipe.bench:
            found += self.make_measuring().bench(self.recipe.bench, self.recipe.engines)
        return found

    def _evaluate(self, spec: EvaluateSpec) -> list[Measurement]:
        """Accuracy; with several calibration seeds, also how far it spreads between them."""
        found = self.make_measuring().evaluate(spec)
        others = [run.make_measuring().evaluate(spec) for run in self.make_siblings()]
        return [with_spread(same) for same in zip(found, *others, strict=True)]

    def _makers(self) -> list[Owner]:
        """Who registers what made the checkpoint: its methods, and the row of its family."""
        names = [*self.plan.names, *([self.cache.name] if self.cache else [])]
        methods = [owner for name in names for owner in registry.owners(name)]
        return [*methods, families.owner(self.decoder.model.config.model_type)]

    def _plugins(self) -> dict[str, str]:
        """The packages that had a part in this run: distribution -> version."""
        owners, spec = self._makers(), self.recipe
        if spec.evaluate:
            owners += [o for suite in spec.evaluate.suites for o in suites.owners(suite)]
        if spec.lower:
            owners.append(targets.owner(spec.lower.target))
        return plugins.versions(owners)

    def _described_calibration(self) -> dict[str, Any] | None:
        """The text, and of every seed the windows drawn and the checkpoint made with them."""
        drawn, siblings = self.draw_calibration(), self.make_siblings()
        if drawn is None:
            return None
        described = drawn[1]
        if siblings:
            runs = [self, *siblings]
            described = described | {"seeds": [run._of_seed() for run in runs]}
        return described

    def _of_seed(self) -> dict[str, Any]:
        drawn = self.draw_calibration()
        assert drawn is not None
        description = drawn[1]
        return {
            "seed": description["seed"],
            "ids_sha256": description["ids_sha256"],
            "checkpoint": self.compress().name,
        }

    def _step(self, what: str, done: int, of: int) -> None:
        self.reporter.step(f"{self.recipe.name}: {what}", done, of)
