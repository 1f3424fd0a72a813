"""The SPIR-V in the package is what its sources make, and valid."""

import shutil
import struct
from pathlib import Path

import pytest

from trinity.lowering.kernels.vulkan import build
from trinity.lowering.kernels.vulkan.device import OBJECTS

SPIRV = sorted(OBJECTS.glob("*.spv"))
MAGIC, VERSION_1_3 = 0x07230203, 0x00010300


def test_every_source_has_its_spirv() -> None:
    assert set(build.FILES) == {path.stem for path in SPIRV}
    assert {source for source, _ in build.FILES.values()} == {
        path.name for path in OBJECTS.glob("*.comp")
    }


@pytest.mark.parametrize("path", SPIRV, ids=lambda path: path.stem)
def test_a_file_is_spirv_of_a_version_that_vulkan_1_1_takes(path: Path) -> None:
    magic, version = struct.unpack("<2I", path.read_bytes()[:8])
    assert (magic, version) == (MAGIC, VERSION_1_3)


@pytest.mark.parametrize("path", SPIRV, ids=lambda path: path.stem)
def test_a_file_is_what_its_source_makes(path: Path) -> None:
    if shutil.which("glslc") is None or shutil.which("spirv-val") is None:
        pytest.skip("no glslc, which makes SPIR-V of the sources, or no spirv-val")
    if build.glslc_version() != build.VERSION:
        pytest.skip(f"glslc is {build.glslc_version()}; {build.VERSION} made it")
    assert build.spirv_of(path.stem) == path.read_bytes()


@pytest.mark.parametrize("path", SPIRV, ids=lambda path: path.stem)
def test_a_file_is_valid(path: Path) -> None:
    if shutil.which("spirv-val") is None:
        pytest.skip("no spirv-val (Debian's spirv-tools)")
    build.validate(path)
