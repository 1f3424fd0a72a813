"""PTX of the CUDA sources: `python -m trinity.lowering.kernels.cuda.build` writes it beside them.

Needs nvcc, which users do not: the PTX is part of the package.  It names no path and no time, so
the same compiler makes the same bytes.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from trinity.lowering.kernels.cuda.device import OBJECTS

# More than the kernels need (`mma.sp` is of 7.1), and what IREE writes for sm_80 itself.  nvcc
# writes the version that it came with, which every older driver refuses.
PTX_VERSION = "7.6"
COMMAND = ("nvcc", "-ptx", "-arch=compute_80", "-std=c++17", "-O3")


def sources() -> list[Path]:
    """One source a file of PTX."""
    return sorted(OBJECTS.glob("*.cu"))


def ptx_of(source: Path) -> str:
    """The PTX of a source, with the version of nvcc in its first line."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, f"{source.stem}.ptx")
        subprocess.run([*COMMAND, f"-I{OBJECTS}", str(source), "-o", str(made)], check=True)
        text = made.read_text("utf-8")
    text = re.sub(r"^\.version .*$", f".version {PTX_VERSION}", text, count=1, flags=re.MULTILINE)
    kept = [line for line in text.splitlines() if not line.startswith("//")]
    return "\n".join([f"// {nvcc_version()}", *kept]).strip() + "\n"


def nvcc_version() -> str:
    """The line of `nvcc --version` that says which it is."""
    done = subprocess.run(
        ["nvcc", "--version"], capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    return next(line for line in done.stdout.splitlines() if "release" in line)


def main() -> None:
    """Write every PTX file."""
    for source in sources():
        source.with_suffix(".ptx").write_text(ptx_of(source), "utf-8")
        sys.stderr.write(f"{source.stem}.ptx\n")


if __name__ == "__main__":
    main()
