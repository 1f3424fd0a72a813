"""The PTX in the package is what its sources make, and assembles."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trinity.lowering.kernels.cuda import build
from trinity.lowering.kernels.cuda.code import CODE
from trinity.lowering.kernels.cuda.device import OBJECTS
from trinity.lowering.kernels.cuda.launch import BINDINGS, CONSTANTS, TOKENS
from trinity.lowering.kernels.lanes.decoder import DECODER, DIGITS_DECODER
from trinity.lowering.kernels.lanes.executable import Entry
from trinity.lowering.kernels.lanes.launch import ENTRIES

PTX = sorted(OBJECTS.glob("*.ptx"))


def entries_of(path: Path) -> tuple[Entry, ...]:
    """The entries that launches ask a file for."""
    return CODE.entries.get(path.name, (Entry(path.stem, BINDINGS - 1, 1, CONSTANTS),))


def test_every_source_has_its_ptx_and_every_launch_its_entry() -> None:
    names = {source.stem for source in build.sources()}
    assert names == {path.stem for path in PTX}
    tiled = {f"product_f{bits}_{tokens // 8}" for bits in (16, 32) for tokens in TOKENS}
    assert names == tiled | {Path(path).stem for path in CODE.entries}
    assert {of for found in CODE.entries.values() for of in found} == {
        *ENTRIES,
        *DECODER,
        *DIGITS_DECODER,
    }


@pytest.mark.parametrize("path", PTX, ids=lambda path: path.stem)
def test_a_ptx_file_has_the_entries_that_launches_ask_for_and_any_driver_since_11_6_takes_it(
    path: Path,
) -> None:
    text = path.read_text("utf-8")
    entries = entries_of(path)
    found = re.findall(r"^\.visible \.entry (\w+)\(", text, re.MULTILINE)
    assert sorted(found) == sorted(entry.name for entry in entries)
    assert f"\n.version {build.PTX_VERSION}\n.target sm_80\n" in text
    for entry in entries:
        (head,) = re.findall(rf"^\.visible \.entry {entry.name}\((.*?)\)", text, re.M | re.S)
        taken = re.findall(r"^\t\.param \.(u\d+)", head, re.MULTILINE)
        assert taken == ["u64"] * entry.bindings + ["u32"] * entry.numbers
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
    spilled = "0 bytes spill stores, 0 bytes spill loads"
    assert done.stderr.count(spilled) == len(entries_of(path))
