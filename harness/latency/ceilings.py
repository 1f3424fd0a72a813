"""What this machine can do at most, measured: every latency is told with its share of the floor.

Decoding one token reads every weight once, so no engine can be faster than the weights' bytes over
the read bandwidth; a prompt cannot be faster than its multiplications over the rate of large matrix
products.  Both are measured here, in the process that times, with torch on the same threads.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from trinity.harness.latency import machine
from trinity.harness.records.measurement import Measurement

READ, MATMUL = "read_bytes_per_s", "matmul_flop_per_s"
_BUFFER = 1 << 30  # bytes: larger than any last-level cache that one process has to itself
_COLUMNS = 4096  # of the matrix that is read
_SIDE = 1024  # of the square matrices
_REPEATS = 5
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def ceilings() -> tuple[Measurement, ...]:
    """Read bandwidth by thread count, and matrix products by dtype; measured once a process."""
    threads = torch.get_num_threads()
    found = [_bandwidth(count) for count in sorted({1, threads})]
    found += [_products(dtype, threads) for dtype in _DTYPES]
    return tuple(found)


def ceiling(metric: str, *, dtype: str = "float32") -> float:
    """The measured ceiling at all threads.  dtype: of matrix products"""
    value = max(
        m.value or 0.0
        for m in ceilings()
        if m.metric == metric and m.details.get("dtype", dtype) == dtype
    )
    return value


def with_share(m: Measurement, floor_s: float, why: str) -> Measurement:
    """A time in seconds with the floor that the machine sets, and the share of it reached."""
    assert m.unit == "s"
    share = floor_s / m.value if m.value else None
    details = m.details | {"floor_s": floor_s, "floor_share": share, "floor_is": why}
    return m.model_copy(update={"details": details})


def _bandwidth(threads: int) -> Measurement:
    # A product with one vector reads faster than a sum does: 30 to 25 GB/s on two cores here.
    matrix, vector = torch.ones(_BUFFER // 4 // _COLUMNS, _COLUMNS), torch.ones(_COLUMNS)
    with _threads(threads):
        samples = _rates(lambda: matrix @ vector, _BUFFER)
    return _measurement(f"ceiling-read-{threads}-threads", READ, "bytes/s", samples, threads, {})


def _products(dtype: torch.dtype, threads: int) -> Measurement:
    name = str(dtype).removeprefix("torch.")
    one = torch.ones(_SIDE, _SIDE, dtype=dtype)
    samples = _rates(lambda: one @ one, 2 * _SIDE**3)
    return _measurement(
        f"ceiling-matmul-{name}", MATMUL, "flop/s", samples, threads, {"dtype": name}
    )


def _rates(call: Callable[[], object], work: float) -> list[float]:
    call()
    found: list[float] = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        found.append(work / (time.perf_counter() - start))
    return found


def _measurement(
    name: str, metric: str, unit: str, samples: list[float], threads: int, details: dict[str, str]
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
