"""Peak memory of one engine, in a process that holds nothing else.

In a process that evaluated and timed several engines, the peak belongs to no one of them.  The
process is a copy of one that has imported the libraries and done nothing else, which is kept: to
import them takes longer than all that is weighed.
"""

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.checkpoints.dequantized import Dequantized
from trinity.harness.engines.engine import Engine
from trinity.harness.latency import generate, memory
from trinity.lowering.targets import targets
from trinity.methods.errors import MachineError

# Of what the loaders use: imported there when needed, and here before.
_LIBRARIES = (
    "transformers.modeling_utils",
    "trinity.harness.modules.module_stages",
    "trinity.lowering.module.invoke",
)


def peak(
    load: Callable[[], Engine], prompt: int, new: int, code: str | None = None
) -> tuple[int, int | None]:
    """(resident bytes before loading, peak bytes) of loading an engine and decoding with it.

    load: must be picklable: a function of a module, or a `partial` of one
    code: the module of a model's class, imported once if it is that of the first that is weighed
    """
    with ProcessPoolExecutor(
        max_workers=1, mp_context=_copies(code), initializer=_die_of_interrupts
    ) as pool:
        try:
            return pool.submit(_measure, load, prompt, new, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            msg = (
                "memory: the process that loads one engine to weigh it died, most likely for want "
                "of memory. Leave `memory` out of bench.suites, or use a machine with more."
            )
            raise MachineError(msg) from error


@cache
def _copies(code: str | None = None) -> ForkServerContext:
    """Processes that are copied from one with the libraries in it.

    code: another module, for the process that is copied from when it starts
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, *_LIBRARIES, *([code] if code else [])])
    return context


def torch_loader(folder: Path) -> Callable[[], Engine]:
    """Loads a compressed checkpoint into torch, dequantized."""
    return partial(_load_torch, str(folder))


def iree_loader(module: Path, parameters: Path, target: targets.Target) -> Callable[[], Engine]:
    """Loads a compiled module with its packed parameters."""
    return partial(_load_iree, str(module), str(parameters), target.name)


def _die_of_interrupts() -> None:
    """Ctrl-C reaches this process too: the one that waits for it says so, and this one nothing."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def _load_torch(folder: str) -> Engine:
    return Dequantized(Checkpoint.open(Path(folder)), torch.device("cpu")).load()


def _load_iree(module: str, parameters: str, target: str) -> Engine:
    # Imported here: only this process needs the runtime.
    from trinity.harness.modules.module_stages import IreeEngine
    from trinity.lowering.module.invoke import CompiledModel

    compiled = CompiledModel(Path(module), Path(parameters), targets.get(target))
    return IreeEngine(compiled, compiled.path)
