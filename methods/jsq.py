"""JSQ: prune with an eye on the range that quantization will meet (Guo et al., ICML 2024).

To Wanda's score of a weight is added how far the layer's output would range without it,

    S_ij = |W_ij| ||X_j||_2 + rho (max_t Y_ti - min_t Y_ti),    Y_ti = sum_k!=j X_tk W_ik,

where the sum is over the tokens t of the mean sequence, and inputs are clipped at the largest 1% of
each sequence.  A weight that holds the range of an output together stays.

It is one of the parts of JSQ.  A recipe has the others: `smoothquant` with `inputs: clipped` before
it, `rtn` after it, and 8-bit inputs (`compress.inputs`).  Scales that SmoothQuant moves change no
score: what multiplies W_ij divides X_j, and inputs are clipped as the model makes them.

From the published code (github.com/uanu2002/JSQ).  The paper searches how far to clip; the code
does not.  Differs from the code: sums are float32 or wider, and ties keep the lower column.
"""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from trinity.methods import wanda
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight
from trinity.methods.options import PatternOption
from trinity.methods.tensors import masked, pattern_problem

AT_ONCE = 1 << 18  # weights that fit a core's cache with what is made of them


class JsqConfig(MethodConfig):
    """Defaults are the code's.

    pattern: N:M, or an unstructured sparsity that every row reaches
    rho: weight of an output's range beside Wanda's score; 0 is Wanda on clipped inputs
    """

    pattern: PatternOption
    rho: NonNegativeFloat = 2.1


def ranges(W: Tensor, X: Tensor) -> Tensor:
    """max_t - min_t of output i without input j.  W: [out, in]  X: [seq, in]  ->  [out, in]"""
    Y, found = X @ W.T, torch.empty_like(W)
    rows = max(1, AT_ONCE // W.shape[1])
    parts = (torch.split(of, rows) for of in (W, Y.T, found))
    for w, y, to in zip(*parts, strict=True):
        low, high = torch.full_like(w, torch.inf), torch.full_like(w, -torch.inf)
        for y_t, x_t in zip(y.T, X, strict=True):
            without = torch.addcmul(y_t[:, None], w, x_t, value=-1)  # [rows, in]
            torch.minimum(low, without, out=low)
            torch.maximum(high, without, out=high)
        torch.sub(high, low, out=to)
    return found


def scores(W: Tensor, x_norm: Tensor, X: Tensor, rho: float) -> Tensor:
    """S.  W: [out, in], float32  x_norm: [in]  X: [seq, in], both of clipped inputs"""
    S = wanda.scores(W, x_norm)
    return S + rho * ranges(W, X) if rho else S


class _Jsq:
    """Costs a pass over [out, in, seq] for every layer, some rows at once."""

    name = "jsq"
    paper = "openreview.net/forum?id=sCGRhnuMUJ"
    config = JsqConfig
    needs = Statistic.X_NORM_CLIPPED | Statistic.X_MEAN_CLIPPED

    def problem(self, shape: tuple[int, int], config: JsqConfig) -> str | None:
        return pattern_problem(shape, config.pattern)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: JsqConfig
    ) -> CompressedWeight:
        if stats.x_norm_clipped is None or stats.X_mean_clipped is None:
            msg = "jsq: needs clipped inputs; the recipe has no calibration data."
            raise ConfigError(msg)
        S = scores(W.float(), stats.x_norm_clipped, stats.X_mean_clipped, config.rho)
        return masked(current, wanda.highest(S, config.pattern), config.pattern, self.name)


JSQ = _Jsq()
