"""Peak memory of one engine, in a process that holds nothing else.

In a process that evaluated and timed several engines, the peak belongs to no one of them.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from trinity.harness import checkpoint
from trinity.harness.engine import Engine, MeasurementPath, TorchEngine
from trinity.harness.latency import generate, memory
from trinity.harness.models import read_config
from trinity.lowering import targets
from trinity.methods.errors import MachineError


def peak(load: Callable[[], Engine], prompt: int, new: int) -> tuple[int, int | None]:
    """(resident bytes before loading, peak bytes) of loading an engine and decoding with it.

    load: must be picklable: a function of a module, or a `partial` of one
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, load, prompt, new, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            msg = (
                "memory: the process that loads one engine to weigh it died, most likely for want "
                "of memory. Leave `memory` out of bench.suites, or use a machine with more."
            )
            raise MachineError(msg) from error


def torch_loader(folder: Path, path: MeasurementPath) -> Callable[[], Engine]:
    """Loads a compressed checkpoint into torch, dequantized."""
    return partial(_load_torch, str(folder), path)


def iree_loader(module: Path, parameters: Path, target: targets.Target) -> Callable[[], Engine]:
    """Loads a compiled module with its packed parameters."""
    return partial(_load_iree, str(module), str(parameters), target.name)


def _measure(
    load: Callable[[], Engine], prompt: int, new: int, threads: int
) -> tuple[int, int | None]:
    torch.set_num_threads(threads)
    memory.reset_peak()
    before = memory.resident_bytes()
    _, at_most = memory.peak_during(lambda: _use(load(), prompt, new))
    return before, at_most


def _use(engine: Engine, prompt: int, new: int) -> None:
    session = engine.session()
    # Ids that every vocabulary has; what the model says to them does not matter.
    ids = generate.fixed_tokens(64, (1, prompt + new), 0)
    session.prefill(ids[:, :prompt])
    for token in ids[:, prompt:].unbind(1):
        session.step(token)


def _load_torch(folder: str, path: MeasurementPath) -> Engine:
    place = Path(folder)
    model = checkpoint.Checkpoint(place).load_model()
    return TorchEngine(model, int(read_config(place).max_position_embeddings), path)


def _load_iree(module: str, parameters: str, target: str) -> Engine:
    # Imported here: only this process needs the runtime.
    from trinity.harness.compiled import IreeEngine
    from trinity.lowering.invoke import CompiledModel

    compiled = CompiledModel(Path(module), Path(parameters), targets.get(target))
    return IreeEngine(compiled, compiled.path)
