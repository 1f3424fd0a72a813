"""The PTX in the package is what its sources make, and assembles."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trinity.lowering.kernels.cuda import build
from trinity.lowering.kernels.cuda.device import OBJECTS
from trinity.lowering.kernels.cuda.launch import BINDINGS, CONSTANTS, TOKENS

PTX = sorted(OBJECTS.glob("*.ptx"))


def test_every_source_has_its_ptx_and_every_launch_its_entry() -> None:
    names = {source.stem for source in build.sources()}
    assert names == {path.stem for path in PTX}
    assert names == {f"product_f{bits}_{tokens // 8}" for bits in (16, 32) for tokens in TOKENS}


@pytest.mark.parametrize("path", PTX, ids=lambda path: path.stem)
def test_a_ptx_file_has_one_entry_of_its_name_for_any_driver_since_11_6(path: Path) -> None:
    text = path.read_text("utf-8")
    assert re.findall(r"^\.visible \.entry (\w+)\(", text, re.MULTILINE) == [path.stem]
    assert f"\n.version {build.PTX_VERSION}\n.target sm_80\n" in text
    assert text.count(f"{path.stem}_param_") >= BINDINGS + CONSTANTS
    assert len(re.findall(r"^\t\.param \.u64", text, re.MULTILINE)) == BINDINGS
    assert len(re.findall(r"^\t\.param \.u32", text, re.MULTILINE)) == CONSTANTS
    assert "/" not in re.sub(r"//.*", "", text)  # no path


@pytest.mark.parametrize("path", PTX, ids=lambda path: path.stem)
def test_a_ptx_file_is_what_its_source_makes(path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc, which makes PTX of the sources")
    committed = path.read_text("utf-8")
    if committed.splitlines()[0] != f"// {build.nvcc_version()}":
        pytest.skip(f"another nvcc made it: {committed.splitlines()[0]}")
    assert build.ptx_of(path.with_suffix(".cu")) == committed


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("path", PTX, ids=lambda path: path.stem)
def test_a_ptx_file_assembles_without_spilling(
    path: Path, architecture: str, tmp_path: Path
) -> None:
    if shutil.which("ptxas") is None:
        pytest.skip("no ptxas, which assembles PTX")
    command = ["ptxas", "-v", f"-arch={architecture}", str(path), "-o", str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
