"""Lays what runs modules for Arm on a processor that QEMU emulates: `tox -e arm`.

Nothing is installed. The C libraries for aarch64 are Debian's and Ubuntu's, the program that runs
modules is in the wheel of IREE's runtime for aarch64. Needs the standard library only.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PROJECT_ROOT = Path(__file__).parents[3]
# Where tests look for it: with `lib/` as QEMU's root, and the programs of each version of IREE.
FOLDER = PROJECT_ROOT / ".tox" / "arm" / "aarch64"
LIBRARIES = ("libc6-arm64-cross", "libgcc-s1-arm64-cross", "libstdc++6-arm64-cross")
PROGRAMS = ("iree-run-module", "iree-cpuinfo")


def programs(version: str) -> Path:
    """The folder with IREE's programs of a version."""
    return FOLDER / f"iree-{version}"


def lay(work: Path) -> str:
    """Fill the folder.  work: an empty folder   -> the version of IREE"""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    _run(["apt-get", "download", *LIBRARIES], work, "Run `apt-get update` as root and try again.")
    for package in work.glob("*.deb"):
        _run(["dpkg-deb", "-x", package.name, "."], work, "The download is broken: try again.")
    shutil.copytree(work / "usr" / "aarch64-linux-gnu" / "lib", FOLDER / "lib", symlinks=True)
    # From the project's folder, where pip finds what PIP_CONSTRAINT names.
    wanted = ["--constraint=constraints.txt", "--no-deps", "--only-binary=:all:"]
    wanted += ["--platform=manylinux_2_28_aarch64", "--python-version=3.11", f"--dest={work}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "iree-base-runtime"]
    _run([*pip, *wanted], PROJECT_ROOT, "Is a package registry in reach?")
    (wheel,) = work.glob("iree_base_runtime-*.whl")
    version = wheel.name.split("-")[1]
    programs(version).mkdir()
    with zipfile.ZipFile(wheel) as opened:
        for name in PROGRAMS:
            program = programs(version) / name
            program.write_bytes(opened.read(f"iree/_runtime_libs/{name}"))
            program.chmod(0o755)
    return version


def _run(command: Sequence[str], folder: Path, advice: str) -> None:
    """Run a command; ends the program, in words, where it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed: this needs Debian, Ubuntu or one made from them.")
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` failed: {done.stderr.strip()} {advice}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(f"IREE {lay(Path(made))} for aarch64 lies in {FOLDER}. `tox -e test` runs it.")
