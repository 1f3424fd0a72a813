"""Measurements of one compressed checkpoint: accuracy, latency and memory, in torch and compiled.

Every suite is a stage of the store, keyed by all that its numbers depend on.  Models are loaded
only when a stage that needs one is missing.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from trinity.harness.accuracy import measured, suites
from trinity.harness.accuracy.suite import ComparedSuite, MeasuredSuite
from trinity.harness.bench.bench import Bench, check_batch, check_positions
from trinity.harness.models.caching import Caching
from trinity.harness.modules.engines import Engines
from trinity.harness.modules.module_stages import Subject
from trinity.harness.recipes.recipe import BenchSpec, EvaluateSpec, LowerSpec, SuiteSpec
from trinity.harness.records import measurement
from trinity.harness.records.environment import environment, numerics
from trinity.harness.records.facts import AgainstDense
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics.comparison import SPEEDUP
from trinity.harness.store import own_code
from trinity.harness.store.once import once
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError


class Measuring(Engines):
    """The suites of one checkpoint, on its engines."""

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
        super().__init__(subject, lower_spec, store, reporter)
        self._make_dense = dense

    @once
    def make_dense(self) -> "Measuring":
        """The model before compression; itself if nothing was compressed."""
        if self._make_dense is None:
            msg = (
                f"{self.subject.name}: the model before compression is not known, and a suite or "
                f"baseline compares with it. Use a checkpoint that `trinity compress` made."
            )
            raise ConfigError(msg)
        found = self._make_dense()
        return self if found.subject.fingerprint == self.subject.fingerprint else found

    def evaluate(self, spec: EvaluateSpec) -> list[Measurement]:
        """Every accuracy suite that is asked for."""
        found = [m for suite in spec.suites for m in self.suite(suite, spec.engine)]
        self.dequantized.forget()
        return found

    def suite(self, spec: SuiteSpec, engine: str) -> list[Measurement]:
        """One accuracy suite, from the store if it was measured before.

        A text's windows are no longer than the model's context; where the suite's own are, every
        measurement says so.
        """
        asked, spec = spec, suites.bounded(spec, self.subject.checkpoint.context)
        suite = suites.resolve(spec)
        if isinstance(suite, ComparedSuite):
            # Of two suites that are in the store: the dense answers are taken once for all rows.
            ours = self.suite(suite.compared, engine)
            dense = ours
            original = self.make_dense()
            if engine != "torch" or original is not self:
                dense = original.suite(suite.compared, "torch")
            noted = AgainstDense(dense_model=original.origin)
            return [noted.added_to(m) for m in suite.compare(ours, dense)]
        assert isinstance(suite, MeasuredSuite)  # every kind is the one or the other
        against, runs = self.make_dense() if suite.needs_dense else None, self.prepare(engine)
        inputs = {
            "suite": suite.model_dump(mode="json"),
            "data": suite.data().fingerprint(),
            "dense": against.subject.fingerprint if against else None,
            **self._measuring(engine),
            "code": own_code.sha256(
                measured, runs, parts=[(type(suite), [suites.kind_owner(suite)])]
            ),
        }
        write = partial(
            measured.measure,
            suite=suite,
            read=inputs["data"],
            runs=runs,
            model=self.dequantized,
            dense=against.dequantized if against else None,
            say=partial(self.reporter.say, f"{self.subject.name}: {spec.suite}"),
        )
        found = measurement.load(self.store.fill("suite", inputs, write))
        bounded = suites.bounded_from(asked, spec)
        if bounded.seqlen_bounded_from:
            self.reporter.say(
                f"{self.subject.name}: {spec.suite} in windows of {spec.seqlen} tokens, which are "
                f"all that the model reads; the suite's are of {bounded.seqlen_bounded_from}"
            )
        dense_model = AgainstDense(dense_model=against.origin if against else None)
        found = suites.resolved(spec, found)
        return [dense_model.added_to(bounded.added_to(m)) for m in found]

    @property
    def origin(self) -> str:
        """Which model a checkpoint was made from, in which type: what fidelity is against."""
        checkpoint = self.subject.checkpoint
        return f"{checkpoint.summary['model']['sha256'][:12]} in {checkpoint.dtype}"

    def bench(self, spec: BenchSpec, engines: list[str]) -> list[Measurement]:
        """Latency and memory of the named engines, interleaved."""
        checkpoint = self.subject.checkpoint
        check_positions(spec, self.lower_spec, checkpoint.config)
        check_batch(spec, self.lower_spec, checkpoint.config, checkpoint.dtype)
        baseline = self._baseline(spec.baseline)
        fingerprint = baseline.subject.fingerprint if baseline else None
        inputs = {
            "bench": spec.model_dump(mode="json"),
            "engines": engines,
            "baseline": fingerprint,
            # The modules of several sequences differ from that of one in the batch alone.
            **self._measuring(*engines),
            "code": own_code.sha256(Bench),
        }
        write = Bench(self, spec, engines, baseline).write
        found = measurement.load(self.store.fill("bench", inputs, write))
        if baseline is None:
            return found
        against = AgainstDense(dense_model=baseline.origin)
        return [against.added_to(m) if m.metric == SPEEDUP else m for m in found]

    def _baseline(self, named: str | None) -> "Measuring | None":
        """What is timed in turn with the checkpoint."""
        if named == "float-cache":
            return self._with_floats()
        return self.make_dense() if named else None

    def _with_floats(self) -> "Measuring":
        """The same weights with keys and values as floats."""
        own = self.subject
        if own.checkpoint.cache is None:
            msg = (
                f"{own.name}: keeps keys and values as floats, and bench.baseline float-cache "
                f"compares a cache with those. Name one under `compress.cache`, or leave it out."
            )
            raise ConfigError(msg)
        subject = Subject(
            replace(own.checkpoint, cache=None),
            f"{own.fingerprint}-float-cache",
            f"{own.name}, its cache as floats",
        )
        return Measuring(subject, self.lower_spec, self.store, self.reporter, self._make_dense)

    def _measuring(self, *engines: str) -> dict[str, Any]:
        """What a measurement depends on besides its suite."""
        lowered = self.lower() if "iree" in engines else None
        packages = environment()["packages"]
        cache = self.subject.checkpoint.cache
        read_by = ("transformers", "tokenizers", "datasets", "lm-eval")
        return {
            "checkpoint": self.subject.fingerprint,
            "cache": own_code.sha256(Caching, methods=[cache.method]) if cache else None,
            "engines_of": sorted(engines),
            "lowered": lowered.fingerprint if lowered else None,
            "numerics": numerics(self.device),
            "packages": {name: packages[name] for name in read_by},
            "machine": environment()["machine"],
        }
