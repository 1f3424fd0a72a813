"""The latency and memory suites of one checkpoint, its engines and its baseline in one process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from safetensors import safe_open
from torch import nn

from trinity.harness import checkpoint, isolated
from trinity.harness.engine import Engine
from trinity.harness.latency import ceilings, generate, memory
from trinity.harness.models import DTYPES, dtype_name, read_config
from trinity.harness.recipe import BenchSpec, LowerSpec
from trinity.harness.records.measurement import Measurement
from trinity.harness.store import read_json
from trinity.harness.walk import TIMING
from trinity.lowering.export import Geometry
from trinity.methods.errors import MachineError

if TYPE_CHECKING:
    from trinity.harness.measure import Measuring

_PHASES = {
    "calibration": "forward passes through finished blocks",
    "statistics": "a forward pass through the block, and the sums over its inputs",
    "solve": "the methods themselves",
}


class Bench:
    """Runs the suites of a `bench:` section, one after the other."""

    def __init__(
        self,
        measuring: "Measuring",
        spec: BenchSpec,
        names: list[str],
        baseline: "Measuring | None",
    ) -> None:
        """names: of the engines   baseline: the dense model's engines; None times no baseline"""
        self.measuring, self.spec, self.names = measuring, spec, names
        self.baseline = baseline

    def run(self) -> list[Measurement]:
        """Every suite that the section names, in its order; the machine's ceilings at the end."""
        suites: dict[str, Callable[[], list[Measurement]]] = {
            "prefill": self._prefill,
            "decode": self._decode,
            "memory": self._memory,
            "compress": self._compress,
            "layers": self._layers,
        }
        found = [m for name in self.spec.suites for m in suites[name]()]
        timed = {"prefill", "decode", "layers"} & set(self.spec.suites)
        return [*found, *(ceilings.ceilings() if timed else ())]

    def _prefill(self) -> list[Measurement]:
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
        rate = ceilings.ceiling(ceilings.MATMUL, dtype=self._dtype())
        work = 2 * self._weights() * spec.prompt * batch
        why = "2 x weights x tokens over the rate of large matrix products"
        return [
            ceilings.with_share(m, work / rate, why) if m.metric == "ttft_s" else m for m in found
        ]

    def _decode(self) -> list[Measurement]:
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
        bandwidth = ceilings.ceiling(ceilings.READ)
        why = "bytes of the weights that the engine holds over read bandwidth"
        return [
            ceilings.with_share(m, self._held_bytes(m.engine) / bandwidth, why)
            if m.metric == "tpot_s"
            else m
            for m in found
        ]

    def _memory(self) -> list[Measurement]:
        measuring, spec = self.measuring, self.spec
        stored = checkpoint.Checkpoint(measuring.subject.folder).stored_bytes()
        found = memory.stored(stored, measuring.engine(self.names[0]))
        scope = f"loading, a prompt of {spec.prompt} and {spec.new} tokens, in a process of its own"
        for name in self.names:
            engine = measuring.engine(name)
            if name == "torch":
                load = isolated.torch_loader(measuring.subject.folder, engine.path)
            else:
                lowered = measuring.lowered
                assert lowered is not None
                load = isolated.iree_loader(lowered.module, lowered.parameters, lowered.target)
            before, at_most = isolated.peak(load, spec.prompt, spec.new)
            found.append(memory.peak(engine, before, at_most, scope))
        return found

    def _compress(self) -> list[Measurement]:
        """What compression cost when its blocks were computed, from the checkpoint's stage."""
        place = self.measuring.subject.folder / TIMING
        phases = read_json(place) if place.is_file() else {}
        engine = self.measuring.engine("torch")
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

    def _layers(self) -> list[Measurement]:
        # Imported here: other suites multiply no single layers.
        from trinity.harness import layer_bench

        measuring = self.measuring
        compressed = checkpoint.Checkpoint(measuring.subject.folder)
        formats = {
            replace(found, inputs=compressed.inputs.get(name))
            for name, found in compressed.formats.items()
        }
        if self.spec.shapes != "model":
            shapes = layer_bench.SHAPES[self.spec.shapes]
            formats = {layer_bench.resized(f, shape) for f in formats for shape in shapes}
        makers = []
        if "iree" in self.names:
            assert measuring.lower_spec is not None
            makers.append(layer_bench.iree_product(measuring.lower_spec.target))
        ordered = sorted(formats, key=lambda f: (f.shape, f.label))
        return layer_bench.bench_layers(ordered, self.spec.rows, self.spec.repeats, makers)

    def _engines(self, batch: int) -> list[Engine]:
        return [self.measuring.engine(name, batch) for name in self.names]

    def _dense(self, batch: int) -> generate.Dense | None:
        """The baseline runs where the compressed weights run packed, or in torch if nowhere."""
        if self.baseline is None:
            return None
        name = "iree" if "iree" in self.names else "torch"
        label = f"{self.baseline.subject.name} ({self.baseline.subject.fingerprint[:12]})"
        return generate.Dense(self.baseline.engine(name, batch), label)

    def _dtype(self) -> str:
        return dtype_name(read_config(self.measuring.subject.folder))

    def _weights(self) -> int:
        """Numbers that a token is multiplied with: linears of the blocks, and the head."""
        model = self.measuring.torch_engine.model
        return sum(m.weight.numel() for m in model.modules() if hasattr(m, "nf") or _linear(m))

    def _held_bytes(self, engine: str) -> int:
        """Bytes of the weights that one token reads; an embedding that is no head is not read."""
        model = self.measuring.torch_engine.model
        if engine != "torch":
            assert self.measuring.lowered is not None
            return bytes_a_token(self.measuring.lowered.parameters, model)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head is not None and head.weight is embedding.weight
        held: int = sum(p.nbytes for p in model.parameters())
        return held if tied else held - int(embedding.weight.nbytes)


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


def check_batch(spec: BenchSpec, lower: LowerSpec | None, folder: Path, dtype: str) -> None:
    """MachineError if this machine cannot hold what its largest batch takes at the least.

    lower: None if only torch is timed   folder: of the model   dtype: of its activations
    """
    batch = max(spec.batch)
    if batch == 1 or not {"prefill", "decode"} & set(spec.suites):
        return
    config = read_config(folder)
    geometry, positions, logits = Geometry.of(config), spec.prompt + spec.new, 1
    if lower is not None:
        # Sizes of a module are fixed: room for its longest sequence, logits of a whole prefill.
        positions, logits = min(lower.context, geometry.max_positions), lower.length
    numbers = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim
    caches = batch * numbers * positions * DTYPES[dtype].itemsize
    needed = caches + 4 * batch * logits * config.vocab_size
    total = psutil.virtual_memory().total
    if needed > total:
        lowered = "lower.context" if lower else "bench.prompt or bench.new"
        msg = (
            f"bench.batch {batch}: the key/value caches of {batch} sequences of {positions} "
            f"positions and the logits of a prompt take at least {needed / 1e9:.1f} GB, and this "
            f"machine has {total / 1e9:.1f} GB. Lower bench.batch, or {lowered}."
        )
        raise MachineError(msg)


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
