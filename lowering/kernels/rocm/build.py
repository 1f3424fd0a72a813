"""Code objects of the HIP source: `python -m trinity.lowering.kernels.rocm.build` writes them.

Needs clang and lld of version 19 (Debian's clang-19 and lld-19) and no SDK, and users need neither:
the code objects are part of the package.  They name no path and no time, so the same compiler makes
the same bytes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from trinity.lowering.kernels.rocm.code_object import require
from trinity.lowering.kernels.rocm.device import ARCHITECTURES, OBJECTS, file_of

CLANG = "clang-19"  # 16 knows neither gfx942 nor gfx1201
COMMAND = (
    *(CLANG, "-x", "hip", "--offload-device-only", "--no-gpu-bundle-output"),
    *("-nogpuinc", "-nogpulib", "-std=c++17", "-O3", "-mcode-object-version=5"),
    *("-I.", "-fuse-cuid=none", "-Xoffload-linker", "--strip-all"),
)


def object_of(architecture: str) -> bytes:
    """The code object of the source for an architecture, checked."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, file_of(architecture))
        command = [*COMMAND, f"--offload-arch={architecture}", "lanes.hip", "-o", str(made)]
        subprocess.run(command, cwd=OBJECTS, check=True)
        code = made.read_bytes()
    require(code, architecture)
    return code


def clang_version() -> bytes:
    """What the compiler calls itself, as its code objects say it in their `.comment`."""
    done = subprocess.run([CLANG, "--version"], capture_output=True, check=True)
    return done.stdout.splitlines()[0]


def main() -> None:
    """Write every code object."""
    for architecture in ARCHITECTURES:
        (OBJECTS / file_of(architecture)).write_bytes(object_of(architecture))
        sys.stderr.write(f"{file_of(architecture)}\n")


if __name__ == "__main__":
    main()
