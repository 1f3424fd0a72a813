"""What all scaled values share: which entries have one scale, and how scales are stored."""

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.dense import FLOAT_DTYPES

EIGHT_BITS = {
    torch.float8_e4m3fn: "e4m3",  # NVFP4's
    torch.float8_e8m0fnu: "e8m0",  # powers of two: MXFP4's
}
"""Types of 8 bits in which scales can be stored, with a reader's word.  Files hold their bytes as
uint8: safetensors 0.8 knows only one of the two.
"""

SCALE_DTYPES = (*FLOAT_DTYPES, *EIGHT_BITS)


def granularity(scale_shape: tuple[int, int], d_in: int) -> str:
    """'tensor', 'channel' or 'group N': what shares one scale."""
    if scale_shape == (1, 1):
        return "tensor"
    size = -(-d_in // scale_shape[1])
    return "channel" if scale_shape[1] == 1 else f"group {size}"


def check_scale(
    scale: Tensor,
    shape: tuple[int, int],
    types: tuple[torch.dtype, ...],
    *,
    indexed: bool = False,
) -> None:
    """Refuse scales that do not fit codes [out, in] or are not positive.

    types: those that may store them   indexed: an index says which inputs share one, so that their
        number need not divide the inputs
    """
    out, d_in = shape
    if scale.dtype not in types or scale.ndim != 2:
        msg = f"scale: expected a float matrix, found {scale.dtype} {list(scale.shape)}."
        raise ConfigError(msg)
    rows, groups = scale.shape
    even = indexed or (groups > 0 and d_in % groups == 0)
    if not (rows == out or (rows, groups) == (1, 1)) or groups < 1 or not even:
        msg = (
            f"scale: {list(scale.shape)} does not fit codes [{out}, {d_in}]: expected [1, 1], "
            f"[{out}, 1] or [{out}, {d_in} // group_size]."
        )
        raise ConfigError(msg)
    check_positive(scale, "scale")


def check_positive(scale: Tensor, name: str) -> None:
    """Refuse scales that are zero, negative or not finite."""
    values = scale.float()
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        msg = (
            f"{name}: holds entries that are not positive finite numbers in {scale.dtype}. "
            f"If the weights are very small or large, store scales as float32."
        )
        raise ConfigError(msg)
