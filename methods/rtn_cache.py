"""Round to nearest for keys and values: min-max codes as they come (arXiv:2303.06865, section 5).

FlexGen rounds each group of the cache's numbers between its smallest and its largest, in 2^b - 1
steps.  Here a group is a position's numbers of one head.

Differs from the paper: groups are heads, not 64 consecutive numbers of the hidden size, so that a
kernel multiplies a scale once for a head; minimum and scale are rounded to float16 before the codes
follow from them; and 8 bits beside 4.
"""

from typing import Literal

from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.formats import CacheFormat, cache_codes


class RtnCacheConfig(MethodConfig):
    """bits: of a code; the paper's is 4"""

    bits: Literal[2, 3, 4, 8] = 4


class _RtnCache:
    """Rounds every position by itself, as soon as it is there, the newest one too."""

    name = "rtn-cache"
    paper = "arXiv:2303.06865"
    config = RtnCacheConfig

    def cache_problem(self, width: int, config: RtnCacheConfig) -> str | None:
        return None

    def cache_format(self, config: RtnCacheConfig) -> CacheFormat:
        return CacheFormat(config.bits)

    def rounded_cache(
        self, keys: Tensor, values: Tensor, config: RtnCacheConfig
    ) -> tuple[Tensor, Tensor]:
        K, V = (cache_codes(X, config.bits).dequantize() for X in (keys, values))
        return K, V


RTN_CACHE = _RtnCache()
