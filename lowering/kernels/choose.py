"""Which storage and which code a compressed linear gets on a target."""

from collections.abc import Set
from functools import cache

from trinity.lowering import processor
from trinity.lowering.kernels.cuda import tiles
from trinity.lowering.kernels.cuda.linear import tile_kernels
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.linear import LinearKernels, linear_kernels
from trinity.lowering.kernels.panels import Panels
from trinity.lowering.kernels.terms import Flavour
from trinity.lowering.storage import Layout, layout_of
from trinity.lowering.targets import Target
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import Unstructured, WeightFormat

DIGIT_FEATURES = frozenset({"avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi2"})


Storage = Layout | Panels | Tiles
"""In rows, which the compiler's own code reads, or in the order of a kernel of ours."""


def storage_of(weight_format: WeightFormat, target: Target) -> Storage:
    """That of the target's kernels where they hold the format, else rows; UnsupportedError
    otherwise.
    """
    layout = layout_of(weight_format)
    if refused(weight_format, target) is not None:
        if weight_format.grid is None and isinstance(weight_format.pattern, Unstructured):
            msg = (
                f"format {weight_format.label}: an unstructured mask over floats has no packed "
                f"storage on {target.name}. Compile it for llvm-cpu, evaluate it with the torch "
                f"engine, quantize it, or prune N:M."
            )
            raise UnsupportedError(msg)
        return layout
    return Tiles(weight_format) if target.kernels == "cuda" else Panels(weight_format)


def refused(weight_format: WeightFormat, target: Target) -> str | None:
    """Why a target has no kernel of ours for a format, or None."""
    if target.kernels is None:
        return "no kernels of ours"
    return tiles.refusal(weight_format) if target.kernels == "cuda" else None


def kernels_of(stored: Storage, name: str, rows: int, dtype: str) -> LinearKernels | None:
    """The kernels of a linear, and the function `name` that calls them; None without.

    dtype: of the model
    """
    if isinstance(stored, Tiles):
        return tile_kernels(name, stored, rows, dtype)
    if isinstance(stored, Panels):
        return linear_kernels(name, stored, rows, host_flavour())
    return None


@cache
def host_flavour() -> Flavour:
    """The kernels that this machine's processor runs best."""
    return flavour_of(processor.features(), processor.may_use_tiles())


def flavour_of(features: Set[str], tiles: bool) -> Flavour:
    """The kernels that a processor runs best.

    features: in Linux's words, of x86-64   tiles: whether a process may use AMX's registers
    """
    if not features >= DIGIT_FEATURES:
        return "floats"
    return "amx" if tiles else "digits"
