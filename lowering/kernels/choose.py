"""Which storage and which code a compressed linear gets on a target."""

import platform
from functools import cache
from pathlib import Path

from trinity.lowering.kernels.panels import Panels, refusal
from trinity.lowering.kernels.terms import Flavour
from trinity.lowering.storage import Layout, layout_of
from trinity.lowering.targets import Target
from trinity.methods.formats import WeightFormat

DIGIT_FEATURES = frozenset({"avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi2"})


def storage_of(weight_format: WeightFormat, target: Target) -> Layout | Panels:
    """Panels where the target has kernels for the format, else rows; UnsupportedError otherwise."""
    layout = layout_of(weight_format)
    if target.kernels and refusal(weight_format) is None:
        return Panels(weight_format)
    return layout


@cache
def host_flavour() -> Flavour:
    """The kernels that this machine's processor runs best."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set[str]())
    return "digits" if platform.machine() == "x86_64" and flags >= DIGIT_FEATURES else "floats"
