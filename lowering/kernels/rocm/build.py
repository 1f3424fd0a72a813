"""Code objects of the HIP sources: `python -m trinity.lowering.kernels.rocm.build` writes them.

Needs clang and lld of version 19 (Debian's clang-19 and lld-19) and no SDK, and users need neither:
the code objects are part of the package.  They name no path and no time, so the same compiler makes
the same bytes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from trinity.lowering.kernels.rocm.code import SOURCES
from trinity.lowering.kernels.rocm.code_object import require
from trinity.lowering.kernels.rocm.device import ARCHITECTURES, OBJECTS, file_of

CLANG = "clang-19"  # 16 knows neither gfx942 nor gfx1201
COMMAND = (
    *(CLANG, "-x", "hip", "--offload-device-only", "--no-gpu-bundle-output"),
    *("-nogpuinc", "-nogpulib", "-std=c++17", "-O3", "-mcode-object-version=5"),
    *("-I.", "-fuse-cuid=none", "-Xoffload-linker", "--strip-all"),
)


def object_of(source: str, architecture: str) -> bytes:
    """The code object of a source for an architecture, checked."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, file_of(source, architecture))
        command = [*COMMAND, f"--offload-arch={architecture}", f"{source}.hip", "-o", str(made)]
        subprocess.run(command, cwd=OBJECTS, check=True)
        code = made.read_bytes()
    require(code, architecture, SOURCES[source])
    return code


def clang_version() -> bytes:
    """What the compiler calls itself, as its code objects say it in their `.comment`."""
    done = subprocess.run([CLANG, "--version"], capture_output=True, check=True)
    return done.stdout.splitlines()[0]


def main() -> None:
    """Write every code object."""
    for source in SOURCES:
        for architecture in ARCHITECTURES:
            name = file_of(source, architecture)
            (OBJECTS / name).write_bytes(object_of(source, architecture))
            sys.stderr.write(f"{name}\n")


if __name__ == "__main__":
    main()
