"""Which library multiplies float32 matrices where torch only reads a text.

torch asks MKL, which uses AVX-512 on Intel's processors alone.  oneDNN, which torch has too, looks
at what the processor can do: on an AMD EPYC with AVX-512 its products took less than half of the
time (docs/diary/cost.md).  Times of torch are of torch as it is: no session of an engine is in
here.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Library = Literal["oneDNN", "torch's own"]
_INFO = Path("/proc/cpuinfo")
_NOT_INTEL = ("AuthenticAMD", "HygonGenuine")


class OneDnn(TorchFunctionMode):
    """Linears of float32 on the CPU by oneDNN, where no gradient is wanted; all else as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func is functional.linear and not torch.is_grad_enabled():
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def fastest() -> Iterator[None]:
    """Within, linears are computed by the library that is faster on this processor."""
    if library() == "oneDNN":
        with OneDnn():
            yield
    else:
        yield


@cache
def library() -> Library:
    """What `fastest` chooses here."""
    backends: Any = torch.backends  # their functions have no types
    better = (
        _may_have_avx512_that_mkl_leaves()
        and backends.mkl.is_available()
        and backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    return "oneDNN" if better else "torch's own"


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [..., in]   weight: [out, in]   bias: [out]  ->  [..., out]"""
    given = (x, weight) if bias is None else (x, weight, bias)
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in given):
        return functional.linear(x, weight, bias)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


def _may_have_avx512_that_mkl_leaves() -> bool:
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    lines = _INFO.read_text(encoding="utf-8").splitlines() if _INFO.is_file() else []
    vendors = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return bool(vendors) and vendors[0] in _NOT_INTEL
