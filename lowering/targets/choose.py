"""Which storage and which code a compressed linear gets on a target."""

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.rows.row_storage import layout_of
from trinity.lowering.targets.targets import Target
from trinity.lowering.weight_storage import WeightStorage
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CacheFormat, Tiles, Unstructured, WeightFormat


def storage_of(weight_format: WeightFormat, target: Target) -> WeightStorage:
    """That of the target's kernels where they hold the format, else rows, which the compiler's own
    code reads; UnsupportedError if neither does.
    """
    layout = layout_of(weight_format)  # what modules cannot hold in rows, no kernel takes either
    reason = refused(weight_format, target)
    if target.kernels and reason is None:
        return target.kernels().storage(weight_format)
    if weight_format.nested:
        msg = (
            f"format {weight_format.label}: {reason} on {target.name}. Share grids of scales "
            f"among 16 outputs and compile it for llvm-cpu, or evaluate it with the torch engine."
        )
        raise UnsupportedError(msg)
    if weight_format.codebook or weight_format.row_codebook or weight_format.vectors:
        msg = (
            f"format {weight_format.label}: values of a table have no kernel on {target.name}. "
            f"Compile it for llvm-cpu, or evaluate it with the torch engine."
        )
        raise UnsupportedError(msg)
    if weight_format.grid is None and isinstance(weight_format.pattern, Unstructured | Tiles):
        msg = (
            f"format {weight_format.label}: an unstructured mask over floats has no packed "
            f"storage on {target.name}. Compile it for llvm-cpu, evaluate it with the torch "
            f"engine, quantize it, or prune N:M."
        )
        raise UnsupportedError(msg)
    return layout


def cache_refusal(cache: CacheFormat, target: Target) -> str | None:
    """Why modules for a target cannot keep keys and values so, or None."""
    if target.kernels is None:
        return f"there are no kernels of ours on {target.name}, and no others read such a cache"
    return target.kernels().cache_refusal(cache)


def linear_code(
    name: str, weight_format: WeightFormat, target: Target, rows: int, dtype: str
) -> KernelCode | None:
    """The kernels of a linear, and the function `name` that calls them; None without, and
    UnsupportedError as of `storage_of`.

    dtype: of the model
    """
    if storage_of(weight_format, target).path == "compiled" or target.kernels is None:
        return None
    return target.kernels().linear(name, weight_format, rows, dtype)


def refused(weight_format: WeightFormat, target: Target) -> str | None:
    """Why a target has no kernel of ours for a format, or None."""
    if target.kernels is None:
        return "no kernels of ours"
    return target.kernels().refusal(weight_format)
