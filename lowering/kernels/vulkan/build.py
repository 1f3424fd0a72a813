"""SPIR-V of the GLSL sources; `python -m trinity.lowering.kernels.vulkan.build` writes it beside.

Needs glslc and spirv-val (Debian's glslc and spirv-tools), which users do not: the SPIR-V is part
of the package.  It names no path and no time, so the same compiler makes the same bytes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from trinity.lowering.kernels.vulkan.device import OBJECTS

# Of Vulkan 1.1: from 1.3 on glslc writes `LocalSizeId`, which needs a feature that IREE's runtime
# does not switch on.
ENVIRONMENT = "vulkan1.1"
# What made the files in the package, as `glslc --version` says it.
VERSION = "shaderc 2023.2-1"


def sources() -> list[Path]:
    """One source a file of SPIR-V; the others are included."""
    return sorted(OBJECTS.glob("*.comp"))


def spirv_of(source: Path) -> bytes:
    """The SPIR-V of a source, validated."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, f"{source.stem}.spv")
        target = f"--target-env={ENVIRONMENT}"
        subprocess.run(["glslc", target, "-O", str(source), "-o", str(made)], check=True)
        validate(made)
        return made.read_bytes()


def validate(path: Path) -> None:
    """Raise CalledProcessError if spirv-val finds fault with a file."""
    subprocess.run(["spirv-val", "--target-env", ENVIRONMENT, str(path)], check=True)


def glslc_version() -> str:
    """The line of `glslc --version` that says which it is."""
    done = subprocess.run(
        ["glslc", "--version"], capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    return done.stdout.splitlines()[0]


def main() -> None:
    """Write every file of SPIR-V."""
    sys.stderr.write(f"{glslc_version()}; the files in the package are of {VERSION}\n")
    for source in sources():
        source.with_suffix(".spv").write_bytes(spirv_of(source))
        sys.stderr.write(f"{source.stem}.spv\n")


if __name__ == "__main__":
    main()
