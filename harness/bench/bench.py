"""The latency and memory suites of one checkpoint, its engines and its baseline in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors import safe_open

from trinity.harness.bench import peak_memory
from trinity.harness.checkpoints.block import TIMING
from trinity.harness.engines.engine import Engine
from trinity.harness.latency import ceilings, generate, memory
from trinity.harness.models.decoder import LINEARS
from trinity.harness.models.model_config import DTYPES, context_length
from trinity.harness.modules.engines import Engines
from trinity.harness.modules.module_stages import IreeEngine
from trinity.harness.recipes.recipe import BenchSpec, LowerSpec
from trinity.harness.records import available, measurement
from trinity.harness.records.measurement import Measurement
from trinity.harness.store.stages import read_json
from trinity.lowering.geometry import Geometry
from trinity.methods.errors import ConfigError, MachineError

_PHASES = {
    "calibration": "forward passes through finished blocks",
    "statistics": "a forward pass through the block, and the sums over its inputs",
    "solve": "the methods themselves",
}


class Bench:
    """Runs the suites of a `bench:` section, one after the other."""

    def __init__(
        self,
        measuring: Engines,
        spec: BenchSpec,
        names: list[str],
        baseline: Engines | None,
    ) -> None:
        """names: of the engines   baseline: the dense model's engines; None times no baseline"""
        self.measuring, self.spec, self.names = measuring, spec, names
        self.baseline = baseline

    def write(self, folder: Path) -> None:
        """Fill a stage with what `run` measures."""
        self.measuring.reporter.say(f"{self.measuring.subject.name}: bench")
        measurement.save(folder, self.run())

    def run(self) -> list[Measurement]:
        """Every suite that the section names, in its order; the machine's ceilings at the end."""
        suites = [SUITES[name] for name in self.spec.suites]
        found = [m for suite in suites for m in suite.run(self)]
        timed = any(suite.is_timed for suite in suites)
        return [*found, *(self._ceilings.measurements if timed else ())]

    @cached_property
    def _ceilings(self) -> ceilings.Ceilings:
        return ceilings.kept(self.measuring.store)

    def prefill(self) -> list[Measurement]:
        """The whole prompt at once, of each batch."""
        return [m for batch in self.spec.batch for m in self._prefill_of(batch)]

    def _prefill_of(self, batch: int) -> list[Measurement]:
        spec = self.spec
        found = generate.prefill(
            self._engines(batch),
            spec.prompt,
            spec.repeats,
            batch=batch,
            baseline=self._dense(batch),
        )
        rate = self._ceilings.products(self.measuring.subject.checkpoint.dtype)
        work = 2 * self._weights() * spec.prompt * batch
        why = "2 x weights x tokens over the rate of large matrix products"
        return [
            ceilings.with_share(m, work / rate, why) if m.metric == "ttft_s" else m for m in found
        ]

    def decode(self) -> list[Measurement]:
        """Token by token, of each batch."""
        return [m for batch in self.spec.batch for m in self._decode_of(batch)]

    def _decode_of(self, batch: int) -> list[Measurement]:
        spec = self.spec
        found = generate.decode(
            self._engines(batch),
            spec.prompt,
            spec.new,
            spec.repeats,
            batch=batch,
            baseline=self._dense(batch),
        )
        found += generate.decode_energy(self._engines(batch), spec.prompt, spec.new, batch=batch)
        bandwidth = self._ceilings.read
        why = "bytes of the weights that the engine holds over read bandwidth"
        return [
            ceilings.with_share(m, self._held_bytes(m.engine) / bandwidth, why)
            if m.metric == "tpot_s"
            else m
            for m in found
        ]

    def memory(self) -> list[Measurement]:
        """Bytes on disk, and the peak of each engine."""
        measuring, spec = self.measuring, self.spec
        stored = measuring.subject.checkpoint.stored_bytes()
        found = memory.stored(stored, measuring.load(self.names[0]))
        found += [self._cache(measuring.load(name)) for name in self.names]
        scope = f"loading, a prompt of {spec.prompt} and {spec.new} tokens, in a process of its own"
        for name in self.names:
            engine, code = measuring.load(name), None
            if name == "torch":
                code = type(measuring.dequantized.load().model).__module__
                load = peak_memory.torch_loader(measuring.subject.checkpoint.folder)
            else:
                lowered = measuring.lower()
                assert lowered is not None
                load = peak_memory.iree_loader(lowered.module, lowered.parameters, lowered.target)
            before, at_most = peak_memory.peak(load, spec.prompt, spec.new, code)
            found.append(memory.peak(engine, before, at_most, scope))
        return found

    def _cache(self, engine: Engine) -> Measurement:
        """Bytes of one sequence's keys and values after the prompt and the new tokens."""
        checkpoint, positions = self.measuring.subject.checkpoint, self.spec.prompt + self.spec.new
        geometry, wide = Geometry.of(checkpoint.config), DTYPES[checkpoint.dtype].itemsize
        sizes = geometry.kv_heads, geometry.head_dim
        if checkpoint.cache:
            of_block = checkpoint.cache.format.bytes_at(positions, *sizes, wide)
        else:
            of_block = 2 * positions * prod(sizes) * wide
        kept = checkpoint.cache.format.label if checkpoint.cache else checkpoint.dtype
        room = engine.compiled.cache_bytes if isinstance(engine, IreeEngine) else None
        return memory.cache(engine, geometry.layers * of_block, positions, kept, room)

    def compress(self) -> list[Measurement]:
        """What compression cost when its blocks were computed, from the checkpoint's stage."""
        place = self.measuring.subject.checkpoint.folder / TIMING
        phases = read_json(place) if place.is_file() else {}
        engine = self.measuring.load("torch")
        return [
            self._phase(engine, name, phases.get(name), metric)
            for name in _PHASES
            for metric in ("seconds", "resident_bytes")
        ]

    def _phase(
        self, engine: Engine, name: str, phase: dict[str, float] | None, metric: str
    ) -> Measurement:
        key = "seconds" if metric == "seconds" else "peak_bytes"
        value = phase[key] if phase and (metric == "seconds" or phase[key]) else None
        return Measurement(
            name=f"compress-{name}",
            metric=metric,
            value=value,
            unit="s" if metric == "seconds" else "bytes",
            higher_is_better=False,
            path=engine.path,
            engine=engine.name,
            details={"scope": _PHASES[name], "includes": "all blocks; the largest peak of one"},
            reason=None if value is not None else "no time was kept for this phase",
        )

    def layers(self) -> list[Measurement]:
        """Single products."""
        # Imported here: other suites multiply no single layers.
        from trinity.harness.bench import layers

        measuring = self.measuring
        formats = set(measuring.subject.checkpoint.rounded_formats.values())
        if self.spec.shapes != "model":
            shapes = layers.SHAPES[self.spec.shapes]
            formats = {layers.resized(f, shape) for f in formats for shape in shapes}
        makers = []
        if "iree" in self.names:
            assert measuring.lower_spec is not None
            makers.append(
                layers.iree_product(measuring.lower_spec.target, measuring.lower_spec.cpu)
            )
        ordered = sorted(formats, key=lambda f: (f.shape, f.label))
        rows, repeats = self.spec.rows, self.spec.repeats
        return layers.bench_layers(ordered, rows, repeats, makers, self._ceilings)

    def _engines(self, batch: int) -> list[Engine]:
        return [self.measuring.load(name, batch) for name in self.names]

    def _dense(self, batch: int) -> generate.DenseEngine | None:
        """The baseline runs where the compressed weights run packed, or in torch if nowhere."""
        if self.baseline is None:
            return None
        name = "iree" if "iree" in self.names else "torch"
        label = f"{self.baseline.subject.name} ({self.baseline.subject.fingerprint[:12]})"
        return generate.DenseEngine(self.baseline.load(name, batch), label)

    def _weights(self) -> int:
        """Numbers that a token is multiplied with: linears of the blocks, and the head."""
        model = self.measuring.dequantized.load().model
        return sum(m.weight.numel() for m in model.modules() if isinstance(m, LINEARS))

    def _held_bytes(self, engine: str) -> int:
        """Bytes of the weights that one token reads; an embedding that is no head is not read."""
        model = self.measuring.dequantized.load().model
        if engine != "torch":
            lowered = self.measuring.lower()
            assert lowered is not None
            return bytes_a_token(lowered.parameters, model)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head is not None and head.weight is embedding.weight
        held: int = sum(p.nbytes for p in model.parameters())
        return held if tied else held - int(embedding.weight.nbytes)


@dataclass(frozen=True)
class BenchSuite:
    """One suite of a `bench:` section.

    is_timed: its times are told with the machine's ceilings   has_sequences: it reads a prompt and
    decodes, in batches, which must fit the model and the machine
    """

    run: Callable[[Bench], list[Measurement]]
    is_timed: bool
    has_sequences: bool


SUITES = {
    "prefill": BenchSuite(Bench.prefill, is_timed=True, has_sequences=True),
    "decode": BenchSuite(Bench.decode, is_timed=True, has_sequences=True),
    "memory": BenchSuite(Bench.memory, is_timed=False, has_sequences=False),
    "compress": BenchSuite(Bench.compress, is_timed=False, has_sequences=False),
    "layers": BenchSuite(Bench.layers, is_timed=True, has_sequences=False),
}


def bytes_a_token(parameters: Path, model: Any) -> int:
    """Bytes of a module's parameter file that one token reads; of an embedding that is no head it
    is a row.  model: that it was made from (transformers has no common type)
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    with safe_open(parameters, framework="pt") as stream:
        sizes = {key: stream.get_tensor(key).nbytes for key in stream.keys()}  # noqa: SIM118  # not a dict
    if any(key.startswith(f"{names.get(id(head))}.") for key in sizes):
        table = f"{names[id(embedding)]}."
        sizes = {key: size for key, size in sizes.items() if not key.startswith(table)}
    return sum(sizes.values())


def check_positions(spec: BenchSpec, lower: LowerSpec | None, config: Any) -> None:
    """ConfigError for sequences longer than the model or its module takes, before it is compiled.

    lower: None if only torch is timed   config: the model's (transformers has no common type)
    """
    if not _has_sequences(spec):
        return
    limits = {"the model": context_length(config)}
    if lower is not None:
        limits["lower.context"] = lower.context
    what, least = min(limits.items(), key=itemgetter(1))
    needed = spec.prompt + spec.new
    if needed > least:
        msg = (
            f"bench: {spec.prompt} prompt and {spec.new} new tokens need {needed} positions, and "
            f"{what} has {least}. Lower bench.prompt or bench.new."
        )
        raise ConfigError(msg)


def check_batch(spec: BenchSpec, lower: LowerSpec | None, config: Any, dtype: str) -> None:
    """MachineError if this machine cannot hold what its largest batch takes at the least.

    lower: None if only torch is timed   config: the model's   dtype: of its activations
    """
    batch = max(spec.batch)
    if batch == 1 or not _has_sequences(spec):
        return
    geometry, positions, logits = Geometry.of(config), spec.prompt + spec.new, 1
    if lower is not None:
        # Sizes of a module are fixed: room for its longest sequence, logits of a whole prefill.
        positions, logits = min(lower.context, geometry.max_positions), lower.length
    numbers = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim
    caches = batch * numbers * positions * DTYPES[dtype].itemsize
    needed = caches + 4 * batch * logits * config.vocab_size
    total = available.total_bytes()
    if needed > total:
        lowered = "lower.context" if lower else "bench.prompt or bench.new"
        msg = (
            f"bench.batch {batch}: the key/value caches of {batch} sequences of {positions} "
            f"positions and the logits of a prompt take at least {needed / 1e9:.1f} GB, and this "
            f"machine has {total / 1e9:.1f} GB. Lower bench.batch, or {lowered}."
        )
        raise MachineError(msg)


def _has_sequences(spec: BenchSpec) -> bool:
    return any(SUITES[name].has_sequences for name in spec.suites)
