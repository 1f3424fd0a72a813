"""What this machine can do at most, measured: every latency is told with its share of the floor.

Decoding one token reads every weight once, so no engine can be faster than the weights' bytes over
the read bandwidth; a prompt cannot be faster than its multiplications over the rate of large matrix
products.  Both are measured here, with torch, once for a processor, its threads and a version of
torch, and kept in the store: every measurement says when, and what else the machine did then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trinity.harness.latency import machine
from trinity.harness.records import measurement, products
from trinity.harness.records.facts import Floor, Measured, Numbers
from trinity.harness.records.measurement import Measurement
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore

READ, MATMUL = "read_bytes_per_s", "matmul_flop_per_s"
NO_INSTRUCTIONS = "none for this type"
_BUFFER = 1 << 30  # bytes: larger than any last-level cache that one process has to itself
_COLUMNS = 4096  # of the matrix that is read
_SIDES = (256, 512, 1024)  # of the square matrices
_REPEATS = 5
_LEAST_S = 0.2  # of repeats
_ENOUGH_S = 1.0  # of repeats: a type that a processor has no instructions for runs at 1 GFLOP/s
_LONG_S = 0.02  # of one product: a larger one would tell nothing new
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Instructions that multiply numbers of a type, as the system names them: x86's, then Arm's.
_MULTIPLY = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}


@dataclass(frozen=True)
class Ceilings:
    """Read bandwidth by number of threads, and rates of matrix products by type."""

    measurements: tuple[Measurement, ...]

    @property
    def read(self) -> float:
        """Bytes a second, at all threads."""
        return max(m.value or 0.0 for m in self.measurements if m.metric == READ)

    @property
    def load(self) -> float:
        """Processes that ran or waited while they were measured, mean of a minute, our own too."""
        found = [(Measured.of(m).meanwhile or {}).get("load", 0.0) for m in self.measurements]
        return max(map(float, found), default=0.0)

    def products(self, dtype: str) -> float:
        """Floating-point operations a second of large matrix products.

        No less than in float32, which holds every narrower number: a type that a processor has no
        instructions for is slower in torch, and no ceiling of others.
        """
        return max(
            m.value or 0.0
            for m in self.measurements
            if m.metric == MATMUL and Numbers.of(m).dtype in ("float32", dtype)
        )

    @property
    def alone(self) -> float:
        """Floating-point operations a second of float32 products in one thread."""
        found = [
            m.value or 0.0
            for m in self.measurements
            if m.metric == MATMUL and m.details.get("threads") == 1
            if Numbers.of(m).dtype == "float32"
        ]
        return max(found, default=self.products("float32"))


def kept(store: StageStore) -> Ceilings:
    """This machine's ceilings, from the store if they were measured before.

    Those of a busy machine are for as long as it has never been seen idle.
    """
    inputs = {
        "machine": machine.describe(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "code": own_code.sha256(write),
    }
    place = store.get("ceilings", inputs | {"busy": False})
    if place is None:
        place = store.fill("ceilings", inputs | {"busy": machine.is_busy()}, write)
    return Ceilings(tuple(measurement.load(place)))


def write(folder: Path) -> None:
    """Fill a stage with what `measured` finds."""
    measurement.save(folder, measured().measurements)


def measured() -> Ceilings:
    """This machine's ceilings, measured now; some three seconds."""
    threads, when = torch.get_num_threads(), datetime.now(UTC).isoformat("T", "seconds")
    matrix, vector = torch.ones(_BUFFER // 4 // _COLUMNS, _COLUMNS), torch.ones(_COLUMNS)
    with machine.watched() as seen:
        made = [_bandwidth(matrix, vector, count) for count in sorted({1, threads})]
        made += [_products(dtype, threads) for dtype in _DTYPES]
        if threads > 1:  # where others have a processor, threads wait for each other
            made.append(_products(torch.float32, 1))
    noted = Measured(measured_at=when, meanwhile=seen)
    return Ceilings(tuple(noted.added_to(m) for m in made))


def with_share(m: Measurement, floor_s: float, why: str) -> Measurement:
    """A time in seconds with the floor that the machine sets, and the share of it reached."""
    assert m.unit == "s"
    share = floor_s / m.value if m.value else None
    return Floor(floor_s=floor_s, floor_share=share, floor_is=why).added_to(m)


def _bandwidth(matrix: Tensor, vector: Tensor, threads: int) -> Measurement:
    """By whatever reads fastest here.  On two cores, a product with a vector and a sum read 30 and
    25 GB/s on an Intel Xeon, 24 and 43 on an AMD EPYC.

    matrix: float32 [rows, in], larger than every cache   vector: float32 [in]
    """
    words = matrix.view(torch.int32)
    ways: dict[str, Callable[[], object]] = {
        "a product with a vector": lambda: matrix @ vector,
        "a sum": matrix.sum,
        "the largest word": words.max,
    }
    with _threads(threads):
        found = {way: _rates(call, matrix.nbytes) for way, call in ways.items()}
    best = max(found, key=lambda way: max(found[way]))
    name = f"ceiling-read-{threads}-threads"
    return _measurement(name, READ, "bytes/s", found[best], threads, {"read_by": best})


def _products(dtype: torch.dtype, threads: int) -> Measurement:
    """Of the threads that work is done with, or of others, which its name then tells."""
    usual = torch.get_num_threads()
    kind = str(dtype).removeprefix("torch.")
    side, samples = 0, [float("inf")]
    with _threads(threads):
        for larger in _SIDES:
            if 2 * side**3 / max(samples) > _LONG_S:
                break
            side, one = larger, torch.ones(larger, larger, dtype=dtype)
            samples = _rates(partial(_product, one), 2 * side**3)
    numbers = Numbers(dtype=kind, instructions=instructions(dtype))
    details = numbers.details() | {"side": side}
    name = f"ceiling-matmul-{kind}" + (f"-{threads}-threads" if threads != usual else "")
    return _measurement(name, MATMUL, "flop/s", samples, threads, details)


@torch.no_grad()
def _product(one: Tensor) -> Tensor:
    with products.fastest():
        return functional.linear(one, one)


def instructions(dtype: torch.dtype) -> str | None:
    """What this processor multiplies narrow numbers of a type with; None where nobody says."""
    known = machine.instructions()
    if known is None or dtype not in _MULTIPLY:
        return None
    return ", ".join(sorted(_MULTIPLY[dtype] & known)) or NO_INSTRUCTIONS


def _rates(call: Callable[[], object], work: float) -> list[float]:
    """Work over seconds of each repeat, after a first that counts only where it is long."""
    seconds = [_seconds(call)]
    if seconds[0] < _ENOUGH_S:
        seconds.clear()
    # Short calls are repeated more often: on a busy machine few are undisturbed.
    while sum(seconds) < (_LEAST_S if len(seconds) >= _REPEATS else _ENOUGH_S):
        seconds.append(_seconds(call))
    return [work / each for each in seconds]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _measurement(
    name: str, metric: str, unit: str, samples: list[float], threads: int, details: dict[str, Any]
) -> Measurement:
    return Measurement(
        name=name,
        metric=metric,
        value=max(samples),
        unit=unit,
        higher_is_better=True,
        path="reference",
        engine="torch",
        samples=samples,
        details=details | {"threads": threads, "statistic": "best", "cpu": machine.cpu_model()},
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
