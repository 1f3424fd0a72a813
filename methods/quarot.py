"""QuaRot: no channel of what is rounded is an outlier (Ashkboos et al., arXiv:2404.00456).

The stream is turned by Q = diag(s) H / sqrt(n), H a Hadamard matrix and s random signs (sec. 4.1,
stage 1a).  Every channel becomes a sum of all, so what was large in a few is spread evenly, in the
inputs of the linears that read the stream and in their weights.  It rounds nothing: a recipe adds
weights (`gptq`, `rtn`) and inputs (`compress.inputs`) of few bits.

Inputs of output and down projections are no linear function of the stream.  With `online:
projections` they are multiplied by a Hadamard matrix as the model runs, and their weights by its
inverse: a property of the model that its checkpoint declares.  The paper turns inputs of output
projections within heads by folding and across heads as the model runs; here the whole product is
made as the model runs, which needs no matrix of as many rows as heads.

Not here: queries and keys turned for a quantized cache, because no cache is quantized.  `kind:
orthogonal` is the paper's random orthogonal matrix, for comparison.
"""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats.hadamard import hadamard


class QuarotConfig(MethodConfig):
    """Defaults are the paper's, but for `online`: the paper turns `projections` too.

    kind: a 'hadamard' matrix with random signs, or a random 'orthogonal' one
    seed: of the signs, or of the matrix
    online: what is turned as the model runs, 'none' or the inputs of output and down 'projections'
    """

    kind: Literal["hadamard", "orthogonal"] = "hadamard"
    seed: int = 0
    online: Literal["none", "projections"] = "none"

    @property
    def turns_inputs(self) -> bool:
        """See `MethodConfig`."""
        return self.online == "projections"


class _Quarot:
    """Costs a product of every weight with Q, each time that a block is read."""

    name = "quarot"
    paper = "arXiv:2404.00456"
    config = QuarotConfig

    def problem(self, width: int, config: QuarotConfig) -> str | None:
        if config.kind == "hadamard" and hadamard(width) is None:
            return f"no Hadamard matrix of {width} rows is known here (use `kind: orthogonal`)"
        return None

    def rotation(self, width: int, config: QuarotConfig) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(config.seed)
        if config.kind == "orthogonal":
            drawn = torch.empty(width, width, dtype=torch.float64, device="cpu")
            Q, R = torch.linalg.qr(drawn.normal_(generator=generator))
            signs = R.diagonal().sign()  # without them Q is not uniform
            return torch.mul(Q, signs).float()
        H = hadamard(width)
        if H is None:
            raise ConfigError(f"quarot: {self.problem(width, config)}.")
        signs = torch.empty(width, 1, device="cpu").bernoulli_(generator=generator) * 2 - 1
        return torch.mul(H, signs / width**0.5)


QUAROT = _Quarot()
