"""Which code multiplies with which format on which target: the table of docs/kernels.md."""

from collections.abc import Iterator, Sequence
from functools import cache

from trinity.lowering.kernels.cpu.cpus import HOST
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import refused, storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import (
    AdapterFormat,
    Codebook,
    FactorFormat,
    Floats,
    Grid,
    InputFormat,
    NestedGrid,
    OutlierFormat,
    RowCodebook,
    VectorCodebook,
    WeightFormat,
    parse_pattern,
)

SHAPE = (512, 1024)
CPU = "icelake-server"  # what is stored for llvm-cpu depends on the kind of processor


def formats() -> Iterator[WeightFormat]:
    """One format of every kind that a checkpoint may hold."""
    out, d_in = SHAPE
    group = Grid(4, True, (out, d_in // 128), "float16")
    two_four = parse_pattern("2:4")
    for dtype in ("float32", "float16", "bfloat16"):
        yield WeightFormat(SHAPE, Floats(dtype))
    for bits in (2, 3, 4, 8):
        yield WeightFormat(SHAPE, Grid(bits, True, group.scale_shape, "float16"))
    yield WeightFormat(SHAPE, Grid(4, True, (1, 1), "float32"))
    yield WeightFormat(SHAPE, Grid(4, True, (out, 1), "float16"))
    yield WeightFormat(SHAPE, Grid(4, False, group.scale_shape, "float16"))
    yield WeightFormat(SHAPE, Grid(4, True, (1, 1), "float32", input_scale="float16"))
    yield WeightFormat(SHAPE, Grid(4, False, group.scale_shape, "float16", indexed=True))
    yield WeightFormat(SHAPE, group, inputs=InputFormat("int8", 128))
    yield WeightFormat(SHAPE, group, inputs=InputFormat("fp8"))
    yield WeightFormat(SHAPE, group, inputs=InputFormat("int8", 128, turned=d_in))
    yield WeightFormat(SHAPE, Codebook("nf4", (out, d_in // 64), "float16"))
    yield WeightFormat(SHAPE, Codebook("e2m1", (out, d_in // 32), "float8_e8m0fnu"))
    yield WeightFormat(SHAPE, Codebook("e2m1", (out, d_in // 16), "float8_e4m3fn", True))
    yield WeightFormat(SHAPE, Codebook("e4m3", (out, 1), "float32"))
    yield WeightFormat(SHAPE, Codebook("nf4", (out, d_in // 64), "float16"), two_four)
    yield WeightFormat(SHAPE, RowCodebook(4, out, "float16"))
    yield WeightFormat(SHAPE, VectorCodebook(2, 8, 8, "float16", "float16"))
    yield WeightFormat(SHAPE, VectorCodebook(1, 16, 8, "float16", "float16"))
    some = OutlierFormat(8, "float16")
    small = NestedGrid(3, d_in // 16, 3, 16, "float16")
    yield WeightFormat(SHAPE, small)
    yield WeightFormat(SHAPE, small, outliers=some)
    yield WeightFormat(SHAPE, group, outliers=some)
    yield WeightFormat(SHAPE, RowCodebook(4, out, "float16"), outliers=some)
    for pattern in ("1:4", "2:4", "4:8", "50%"):
        yield WeightFormat(SHAPE, group, parse_pattern(pattern))
    yield WeightFormat(SHAPE, Grid(8, True, group.scale_shape, "float16"), two_four)
    yield WeightFormat(SHAPE, Floats("float16"), two_four)
    yield WeightFormat(SHAPE, Floats("float16"), parse_pattern("50%"))
    for values in (group, Floats("float16")):
        yield WeightFormat(SHAPE, values, parse_pattern("2:4 in 50% by 128x128"))
    yield WeightFormat(SHAPE, group, two_four, AdapterFormat(64, "float16"))
    high = FactorFormat(Grid(4, True, (out, 1), "float16"))
    low = FactorFormat(Grid(4, True, (64, d_in // 128), "float16"))
    yield WeightFormat(SHAPE, group, two_four, AdapterFormat(64, None, high, low))


def markdown() -> str:
    """The table: a row a format, a column a target; bits as the targets with kernels store them."""
    rows = _targets()
    names = sorted(rows)
    own = [name for name in names if rows[name].kernels]
    lines = [
        f"| format | {' | '.join(names)} | bits per weight: {', '.join(own)} | why no kernel |",
        f"|---|{'---|' * len(names)}---:|---|",
    ]
    for found in formats():
        cells = [_code(found, rows[name]) for name in names]
        bits = ", ".join(_bits(found, rows[name]) for name in own)
        lines.append(f"| {found.label} | {' | '.join(cells)} | {bits} | {_reasons(found, own)} |")
    return "\n".join(lines) + "\n"


@cache
def _targets() -> dict[str, targets.Target]:
    """Those that are built in, of this machine or of another one."""
    return {
        name: targets.get(name, CPU if target.for_host else HOST)
        for name, target in targets.BUILT_IN.items()
        if target.like is None
    }


def _bits(weight_format: WeightFormat, target: targets.Target) -> str:
    """Stored bits per weight where a kernel reads them, else a dash."""
    has_kernel = _code(weight_format, target) == "kernel"
    return f"{storage_of(weight_format, target).bits():.2f}" if has_kernel else "–"


def _reasons(weight_format: WeightFormat, own: Sequence[str]) -> str:
    """Why no module holds a format, or which targets with kernels have none for it and why."""
    rows = _targets()
    refusals = {name: _refused(weight_format, rows[name]) for name in sorted(rows)}
    if all(refusals.values()):
        return str(refusals[own[0]])
    found = {name: refused(weight_format, rows[name]) for name in own} | {
        name: reason.partition(" on ")[0] for name, reason in refusals.items() if reason
    }
    return "; ".join(f"{name}: {reason}" for name, reason in found.items() if reason)


def _code(weight_format: WeightFormat, target: targets.Target) -> str:
    if _refused(weight_format, target):
        return "refused"
    return storage_of(weight_format, target).path


def _refused(weight_format: WeightFormat, target: targets.Target) -> str | None:
    """Why no module for a target can hold a format, in its error's first words; None if one can."""
    try:
        storage_of(weight_format, target)
    except UnsupportedError as error:
        return str(error).partition(": ")[2].partition(". ")[0]
    return None
