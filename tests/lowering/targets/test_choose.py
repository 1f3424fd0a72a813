"""Which storage a target gets, and which kernels a processor."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.kernels.cpu.flavour import instructions_of, missing_here
from trinity.lowering.kernels.cpu.instructions import (
    AMX,
    ARM,
    AVX2,
    AVX512_VNNI,
    INSTRUCTIONS,
    X86,
    best,
)
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CompressedWeight, format_of


def test_a_processor_gets_the_flavour_with_the_most_that_it_has() -> None:
    assert best(AMX, X86).flavour == "amx"
    assert best(AVX512_VNNI, X86).flavour == "avx512-vnni"
    assert best(AVX2 | {"avx_vnni"}, X86).flavour == "avx-vnni"
    assert best(frozenset({"asimd", "asimddp", "i8mm"}), ARM).flavour == "neon-i8mm"
    assert best(frozenset({"asimd"}), ARM).flavour == "plain"


def test_a_processor_without_one_of_the_instructions_gets_another_flavour() -> None:
    for missing in AVX512_VNNI - AVX2:
        assert best(AVX512_VNNI - {missing}, X86).flavour == "avx2"
    for missing in AVX2:
        assert best(AVX512_VNNI - {missing}, X86).flavour == "plain"


@pytest.mark.parametrize(
    ("cpu", "flavour"),
    [
        ("x86-64", "plain"),
        ("x86-64-v3", "avx2"),
        ("alderlake", "avx-vnni"),
        ("x86-64-v4", "avx2"),
        ("icelake-server", "avx512-vnni"),
        ("sapphirerapids", "amx"),
        ("neoverse-n1", "neon-dot"),
        ("neoverse-v1", "neon-i8mm"),
    ],
)
def test_a_kind_of_processor_has_a_flavour_whatever_this_one_is(cpu: str, flavour: str) -> None:
    assert instructions_of(cpus.get(cpu)).flavour == flavour


def test_what_a_flavour_lacks_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trinity.lowering.kernels.cpu.processor.features", lambda: AVX2)
    assert missing_here("avx2") is None
    assert missing_here("plain") is None
    assert missing_here("avx-vnni") == "this processor lacks avx_vnni"
    assert list(INSTRUCTIONS)[-1] == "plain"


@pytest.mark.parametrize(
    "kind", ["nf4 group 8", "e2m1 group 8 e4m3 outer", "e4m3 channel", "rows of 4"]
)
def test_values_of_a_table_are_refused_by_name_where_no_kernel_reads_them(
    make_weight: Callable[..., CompressedWeight], kind: str
) -> None:
    weight_format = format_of(make_weight((6, 24), kind))
    assert isinstance(storage_of(weight_format, targets.get("llvm-cpu")), Panels)
    without = replace(targets.get("cuda"), kernels=None)
    with pytest.raises(UnsupportedError, match="of a table have no kernel on cuda"):
        storage_of(weight_format, without)
    for target in ("vulkan", "cuda", "rocm"):
        assert isinstance(storage_of(weight_format, targets.get(target)), Strips)


def test_scales_that_are_codes_have_a_kernel_on_processors_where_16_outputs_share_grids(
    make_weight: Callable[..., CompressedWeight],
) -> None:
    weight_format = format_of(make_weight((40, 24), "nested 3 group 8"))
    nested = weight_format.nested
    assert nested
    assert isinstance(storage_of(weight_format, targets.get("llvm-cpu")), Panels)
    other = replace(weight_format, values=replace(nested, rows=8))
    for refused, target in [(other, "llvm-cpu")] + [
        (weight_format, name) for name in ("vulkan", "cuda", "rocm")
    ]:
        with pytest.raises(UnsupportedError, match=f"scales .* on {target}. Share"):
            storage_of(refused, targets.get(target))


def test_an_unstructured_mask_over_floats_is_refused_where_no_kernel_reads_it(
    make_weight: Callable[..., CompressedWeight],
) -> None:
    weight_format = format_of(make_weight((6, 24), "float16", "50%"))
    without = replace(targets.get("cuda"), kernels=None)
    with pytest.raises(UnsupportedError, match=r"50% float16: an unstructured mask .* on cuda"):
        storage_of(weight_format, without)
    assert isinstance(storage_of(weight_format, targets.get("llvm-cpu")), Panels)
    for target in ("vulkan", "cuda", "rocm"):
        assert isinstance(storage_of(weight_format, targets.get(target)), Strips)
