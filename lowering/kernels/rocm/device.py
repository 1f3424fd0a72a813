"""The GPUs that our ROCm kernels are made for, and where their code is."""

from pathlib import Path

OBJECTS = Path(__file__).parent  # code objects, by name
# Without a configuration a target matches every device of its kind.
ROCM_CODE = '#hal.executable.target<"rocm", "rocm-hsaco-fb">'
# Architecture, and its number in the flags of an ELF file (EF_AMDGPU_MACH): server GPUs with
# wavefronts of 64 lanes (MI200, MI300), and desktop GPUs with 32 (RX 7900, RX 9070).
ARCHITECTURES = {"gfx90a": 0x3F, "gfx942": 0x4C, "gfx1100": 0x41, "gfx1201": 0x4E}


def file_of(source: str, architecture: str) -> str:
    """The code object of a source for an architecture, in `OBJECTS`."""
    return f"{source}-{architecture}.hsaco"
