"""Measurements of one compressed checkpoint: accuracy, latency and memory, in torch and compiled.

Every suite is a stage of the store, keyed by all that its numbers depend on.  Models are loaded
only when a stage that needs one is missing.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trinity.harness import checkpoint, sources
from trinity.harness.accuracy import fidelity, suites
from trinity.harness.bench import Bench, check_batch
from trinity.harness.code import code_sha256
from trinity.harness.compiled import Lowered, Subject, lower
from trinity.harness.engine import Engine, MeasurementPath, TorchEngine
from trinity.harness.models import dtype_name, read_config
from trinity.harness.progress import Reporter
from trinity.harness.recipe import BenchSpec, EvaluateSpec, LowerSpec, SuiteSpec
from trinity.harness.records.environment import environment, numerics
from trinity.harness.records.measurement import Measurement
from trinity.harness.store import StageStore, read_json, write_json
from trinity.lowering import targets
from trinity.methods.errors import ConfigError, MachineError

MEASUREMENTS = "measurements.json"


class Measuring:
    """The engines and suites of one checkpoint."""

    def __init__(
        self,
        subject: Subject,
        lower_spec: LowerSpec | None,
        store: StageStore,
        reporter: Reporter,
        dense: Callable[[], "Measuring"] | None = None,
    ) -> None:
        """lower_spec: what to compile for; None leaves torch as the only engine.

        dense: makes the same of the model before compression, for what is compared with it
        """
        self.subject, self.lower_spec = subject, lower_spec
        self.store, self.reporter = store, reporter
        self._make_dense = dense
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def dense(self) -> "Measuring":
        """The model before compression; itself if nothing was compressed."""
        if self._make_dense is None:
            msg = (
                f"{self.subject.name}: the model before compression is not known, and a suite or "
                f"baseline compares with it. Use a checkpoint that `trinity compress` made."
            )
            raise ConfigError(msg)
        found = self._make_dense()
        return self if found.subject.fingerprint == self.subject.fingerprint else found

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded once (transformers has no common type for it)."""
        return sources.tokenizer_of(self.subject.folder)

    @cached_property
    def torch_engine(self) -> TorchEngine:
        """The dequantized model in torch."""
        compressed = checkpoint.Checkpoint(self.subject.folder)
        untouched = not compressed.inputs and all(
            not layout.grid and not layout.pattern for layout in compressed.formats.values()
        )
        model = compressed.load_model().to(self.device)
        path: MeasurementPath = "reference" if untouched else "simulated"
        return TorchEngine(model, context_length(self.subject.folder), path)

    @cached_property
    def lowered(self) -> Lowered | None:
        """The compiled and verified module; None if the recipe does not lower."""
        if self.lower_spec is None:
            return None
        return self._lower(self.lower_spec, 1)

    def _lower(self, spec: LowerSpec, batch: int) -> Lowered:
        return lower(
            self.subject, spec, self.store, lambda: self.torch_engine, self.reporter, batch
        )

    def evaluate(self, spec: EvaluateSpec) -> list[Measurement]:
        """Every accuracy suite that is asked for."""
        return [m for suite in spec.suites for m in self.suite(suite, spec.engine)]

    def suite(self, spec: SuiteSpec, engine: str) -> list[Measurement]:
        """One accuracy suite, from the store if it was measured before."""
        resolved = suites.resolve(spec)
        if isinstance(resolved, suites.FlipsSuite):
            # Of two suites that are in the store: the dense answers are taken once for all rows.
            ours = self.suite(resolved.tasks_spec, engine)
            dense = ours
            if engine != "torch" or self.dense is not self:
                dense = self.dense.suite(resolved.tasks_spec, "torch")
            return fidelity.flips(ours, dense, resolved.name)
        against = self.dense if suites.needs_dense(spec) else None
        inputs = {
            "suite": resolved.model_dump(mode="json"),
            "data": suites.fingerprint(spec),
            "dense": against.subject.fingerprint if against else None,
            **self._measuring(engine),
            "code": code_sha256("accuracy", "suites", "data.py", "engine.py", "statistics.py"),
        }

        def measure() -> list[Measurement]:
            dense = (lambda: against.torch_engine) if against else None
            return suites.run(spec, self.engine(engine), self.tokenizer, dense)

        return self._measured("suite", inputs, spec.suite, measure)

    def bench(self, spec: BenchSpec, engines: list[str]) -> list[Measurement]:
        """Latency and memory of the named engines, interleaved."""
        folder = self.subject.folder
        check_batch(spec, self.lower_spec, folder, dtype_name(read_config(folder)))
        baseline = self.dense if spec.baseline else None
        fingerprint = baseline.subject.fingerprint if baseline else None
        inputs = {
            "bench": spec.model_dump(mode="json"),
            "engines": engines,
            "baseline": fingerprint,
            # The modules of several sequences differ from that of one in the batch alone.
            **self._measuring(*engines),
            "code": code_sha256("latency", "engine.py", "statistics.py", "isolated.py"),
        }
        return self._measured(
            "bench", inputs, "bench", lambda: Bench(self, spec, engines, baseline).run()
        )

    def _measured(
        self,
        kind: str,
        inputs: dict[str, Any],
        name: str,
        measure: Callable[[], list[Measurement]],
    ) -> list[Measurement]:
        """A stage whose result is measurements."""

        def write(folder: Path) -> None:
            self.reporter.say(f"{self.subject.name}: {name}")
            found = [m.model_dump(mode="json") for m in measure()]
            write_json(folder / MEASUREMENTS, found)

        stage = self.store.fetch(kind, inputs, write)
        return [Measurement.model_validate(m) for m in read_json(stage / MEASUREMENTS)]

    def _measuring(self, *engines: str) -> dict[str, Any]:
        """What a measurement depends on besides its suite."""
        lowered = self.lowered if "iree" in engines else None
        packages = environment()["packages"]
        return {
            "checkpoint": self.subject.fingerprint,
            "engines_of": sorted(engines),
            "lowered": lowered.fingerprint if lowered else None,
            "numerics": numerics(self.device),
            "packages": {name: packages[name] for name in ("transformers", "lm-eval")},
            "machine": environment()["machine"],
        }

    def engine(self, name: str, batch: int = 1) -> Engine:
        """'torch' or 'iree', loaded when first asked for.

        batch: sequences that it is to decode together; of a module for several, nothing is kept
        here, so that it leaves memory with whoever asked
        """
        if name == "torch":
            return self.torch_engine
        if self.lower_spec is None or self.lowered is None:
            msg = "engine 'iree': there is no `lower:` section that says for which target."
            raise ConfigError(msg)
        lowered = self.lowered if batch == 1 else self._lower(self.lower_spec, batch)
        return lowered.engine


def check_machine(evaluate: EvaluateSpec | None, lower_spec: LowerSpec | None) -> None:
    """Refuse, before anything is loaded, what this machine lacks: data, a target's device."""
    if evaluate:
        for suite in evaluate.suites:
            missing = suites.missing(suite)
            if missing:
                raise MachineError(missing)
        if evaluate.engine == "iree" and lower_spec is None:
            msg = "evaluate.engine is 'iree', and no `lower:` section of the recipe names a target."
            raise ConfigError(msg)
    if lower_spec:
        targets.get(lower_spec.target).require()


def context_length(folder: Path) -> int:
    """Positions that a model was built for."""
    return int(read_config(folder).max_position_embeddings)
