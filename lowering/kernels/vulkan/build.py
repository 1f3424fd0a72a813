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


# Files of SPIR-V by name: their source, which includes the others, and what is defined in it.
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "product": ("product.comp", ()),
    "tile": ("product.comp", ("TILED",)),
    "dots": ("product.comp", ("DOTS",)),
    "norm": ("norm.comp", ()),
    "cache": ("cache.comp", ()),
    "attention": ("attention.comp", ()),
}


def spirv_of(name: str) -> bytes:
    """The SPIR-V of a file, validated."""
    source, defined = FILES[name]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, f"{name}.spv")
        command = ["glslc", f"--target-env={ENVIRONMENT}", "-O", *(f"-D{of}" for of in defined)]
        subprocess.run([*command, str(OBJECTS / source), "-o", str(made)], check=True)
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
    for name in FILES:
        (OBJECTS / f"{name}.spv").write_bytes(spirv_of(name))
        sys.stderr.write(f"{name}.spv\n")


if __name__ == "__main__":
    main()
