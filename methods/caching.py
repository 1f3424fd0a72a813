"""Methods that say how keys and values are kept: a property of the model that runs, of no weight.

A recipe names one under `compress.cache`, and the checkpoint declares it.  The torch engine asks it
what attention reads and computes with that, so its numbers are those of such a cache, held as
floats.  Compiled modules hold the format itself, where they have kernels for it.
"""

from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.formats import CacheFormat

C = TypeVar("C", bound=MethodConfig, contravariant=True)


@runtime_checkable
class CacheMethod(Protocol[C]):
    """Rounds keys and values while a model reads and decodes."""

    name: str
    paper: str
    config: type[MethodConfig]

    def cache_problem(self, width: int, config: C) -> str | None:
        """Why heads of so many numbers cannot be kept with `config`, or None."""
        ...

    def cache_format(self, config: C) -> CacheFormat:
        """What the cache holds."""
        ...

    def rounded_cache(self, keys: Tensor, values: Tensor, config: C) -> tuple[Tensor, Tensor]:
        """What attention reads of positions that are rounded at once.

        keys (rotated, where the model rotates them), values: float32 [batch, heads, positions,
            width], not to be changed; `positions` is any number where the format rounds each by
            itself, else `together`
        -> the same shapes
        """
        ...
