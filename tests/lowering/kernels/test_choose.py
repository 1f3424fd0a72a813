"""Which storage a target gets, and which kernels a processor."""

from collections.abc import Callable

import pytest

from trinity.lowering import targets
from trinity.lowering.kernels.choose import DIGIT_FEATURES, flavour_of, storage_of
from trinity.lowering.kernels.panels import Panels
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CompressedWeight, format_of


def test_matrix_units_are_used_where_they_and_the_vector_instructions_are() -> None:
    assert flavour_of(DIGIT_FEATURES, tiles=True) == "amx"
    assert flavour_of(DIGIT_FEATURES, tiles=False) == "digits"


def test_a_processor_without_one_of_the_instructions_gets_floats() -> None:
    for missing in DIGIT_FEATURES:
        assert flavour_of(DIGIT_FEATURES - {missing}, tiles=True) == "floats"


@pytest.mark.parametrize("target", ["vulkan", "cuda", "rocm"])
def test_an_unstructured_mask_over_floats_is_refused_where_no_kernel_reads_it(
    make_weight: Callable[..., CompressedWeight], target: str
) -> None:
    weight_format = format_of(make_weight((6, 24), "float16", "50%"))
    with pytest.raises(UnsupportedError, match=f"50% float16: an unstructured mask .* on {target}"):
        storage_of(weight_format, targets.get(target))
    assert isinstance(storage_of(weight_format, targets.get("llvm-cpu")), Panels)
