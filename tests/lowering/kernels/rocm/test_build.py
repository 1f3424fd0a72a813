"""The code objects in the package: what they say of themselves, and what their source makes."""

import shutil
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trinity.lowering.kernels.lanes.launch import ENTRIES
from trinity.lowering.kernels.rocm import build, code_object
from trinity.lowering.kernels.rocm.code import SOURCES
from trinity.lowering.kernels.rocm.device import ARCHITECTURES, OBJECTS, file_of
from trinity.lowering.kernels.rocm.kernels import RocmKernels
from trinity.lowering.module import check
from trinity.lowering.module.compile import compile_text
from trinity.lowering.targets import targets
from trinity.methods.errors import LoweringError
from trinity.methods.formats import CompressedWeight, format_of

TARGETS = {name: of for name, of in targets.BUILT_IN.items() if name.startswith("rocm")}
Make = Callable[..., CompressedWeight]


def code_of(architecture: str, source: str = "lanes") -> bytes:
    return (OBJECTS / file_of(source, architecture)).read_bytes()


def altered(code: bytes, found: bytes, other: bytes) -> bytes:
    """The same with some bytes instead of others, which must be there."""
    assert len(found) == len(other)
    assert found in code
    return code.replace(found, other)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_code_object_is_what_modules_call_and_spills_nothing(
    architecture: str, source: str
) -> None:
    code, entries = code_of(architecture, source), SOURCES[source]
    code_object.require(code, architecture, entries)
    found = code_object.read(code)
    assert found.architecture == architecture
    assert {kernel[".name"] for kernel in found.kernels} == {entry.name for entry in entries}
    assert max(kernel[".group_segment_fixed_size"] for kernel in found.kernels) <= 48 * 1024
    assert {kernel[".private_segment_fixed_size"] for kernel in found.kernels} == {0}
    assert {kernel[".vgpr_spill_count"] for kernel in found.kernels} == {0}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_code_object_is_what_its_source_makes(architecture: str, source: str) -> None:
    for program in (build.CLANG, "ld.lld-19"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}, which makes code objects of the source")
    committed = code_of(architecture, source)
    if build.clang_version() not in committed:
        pytest.skip(f"another clang made it than {build.clang_version().decode()}")
    assert build.object_of(source, architecture) == committed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_code_of_another_architecture_is_refused(architecture: str) -> None:
    for other in ARCHITECTURES.keys() - {architecture}:
        with pytest.raises(LoweringError, match=f"its ELF flags are of {other}; its note says"):
            code_object.require(code_of(other), architecture, ENTRIES)


def test_flags_alone_and_a_note_alone_are_refused() -> None:
    code = code_of("gfx942")
    flags = bytearray(code)
    struct.pack_into("<B", flags, 48, ARCHITECTURES["gfx90a"])
    with pytest.raises(LoweringError, match="ELF flags are of gfx90a"):
        code_object.require(bytes(flags), "gfx942", ENTRIES)
    struct.pack_into("<B", flags, 48, 1)
    with pytest.raises(LoweringError, match="an architecture that is not ours"):
        code_object.require(bytes(flags), "gfx942", ENTRIES)
    other = altered(code, b"amdhsa--gfx942", b"amdhsa--gfx941")
    with pytest.raises(LoweringError, match="its note says amdgcn-amd-amdhsa--gfx941"):
        code_object.require(other, "gfx942", ENTRIES)


def test_a_module_without_code_is_refused() -> None:
    assert RocmKernels("gfx90a").fault(b"no code") == "it holds no code for gfx90a"


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda kernel: kernel.update({f".{key}": value for key, value in values.items()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(wavefront_size=32), "is for wavefronts of 32 lanes"),
        (changed(max_flat_workgroup_size=128), "is for 128 threads"),
        (changed(kernarg_segment_size=344), "takes 344 bytes"),
        (changed(name="product"), "its kernels are product"),
        (changed(symbol="other.kd"), "has no symbol"),
        (lambda kernel: kernel[".args"].pop(), "takes global_buffer of 8 bytes"),
        (lambda kernel: kernel[".args"][0].update({".size": 4}), "takes global_buffer of 4 bytes"),
        (lambda kernel: kernel[".args"][5].update({".offset": 64}), "takes global_buffer"),
    ],
)
def test_a_kernel_that_is_not_as_modules_call_it_is_refused(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    found = code_object.read(code_of("gfx942"))
    assert list(code_object.faults_of(found, "gfx942", ENTRIES)) == []
    change(found.kernels[0])
    assert said in "; ".join(code_object.faults_of(found, "gfx942", ENTRIES))


@pytest.mark.parametrize("code", [b"", b"\x7fELF", code_of("gfx90a")[:4000]])
def test_what_is_no_code_object_is_refused(code: bytes) -> None:
    with pytest.raises(LoweringError, match="a code object for ROCm"):
        code_object.require(code, "gfx90a", ENTRIES)


@pytest.mark.parametrize("name", TARGETS)
def test_a_module_holds_the_code_object_and_code_of_no_other_gpu(
    make_weight: Make, name: str
) -> None:
    target = TARGETS[name]
    assert target.kernels is not None
    kernels = target.kernels()
    assert isinstance(kernels, RocmKernels)
    weight_format = format_of(make_weight((40, 64), "int4 group 16", "2:4", 3, torch.float16))
    module = compile_text(check.linears_text(weight_format, target, (1, 3), "float32"), target)
    found = code_object.inside(module)
    assert {of.architecture for of in found} == {kernels.architecture}
    assert module.count(code_of(kernels.architecture)) == 1  # verbatim, and once
    for other in ARCHITECTURES.keys() - {kernels.architecture}:
        assert f"another GPU than {other}" in str(RocmKernels(other).fault(module))


def test_a_module_with_the_wrong_code_object_is_refused(
    make_weight: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IREE's compiler takes it without a word."""
    weight_format = format_of(make_weight((40, 64), "int8 channel"))
    text = check.linear_text(weight_format, TARGETS["rocm"], 1)
    wrong = text.replace(file_of("lanes", "gfx90a"), file_of("lanes", "gfx942"))
    assert wrong != text
    with pytest.raises(LoweringError, match="holds code for another GPU than gfx90a"):
        compile_text(wrong, TARGETS["rocm"])
    monkeypatch.setattr(RocmKernels, "fault", lambda *_: None)
    assert code_of("gfx942") in compile_text(wrong, TARGETS["rocm"])
