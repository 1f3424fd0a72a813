"""The annotated stage of one linear: torch-mlir takes it, and its types say what the weight is."""

from collections.abc import Callable

import pytest

from trinity.lowering.graph.annotate import annotated_call
from trinity.lowering.mlir.dialects import verified
from trinity.lowering.targets import coverage, targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CompressedWeight, WeightFormat, format_of

CPU = targets.get("llvm-cpu")


def held(weight_format: WeightFormat) -> bool:
    """Whether a module for processors can hold a format."""
    try:
        storage_of(weight_format, CPU)
    except UnsupportedError:
        return False
    return True


HELD = list(filter(held, coverage.formats()))


def annotated(weight_format: WeightFormat) -> str:
    """The function, parsed and verified."""
    return verified(f"module {{\n{annotated_call('layer', weight_format, 1).text}}}\n", "annotated")


@pytest.mark.parametrize("weight_format", HELD, ids=lambda f: f.label)
def test_every_format_that_a_module_holds_can_be_said(weight_format: WeightFormat) -> None:
    assert "linalg.generic" in annotated(weight_format)


@pytest.mark.parametrize(
    ("kind", "pattern", "said"),
    [
        ("e2m1 group 8 e8m0", None, ["tensor<8x16xf4E2M1FN>", "tensor<8x2xf8E8M0FNU>"]),
        ("e2m1 group 8 e4m3 outer", "2:4", ["structured[2, 4]", "f4E2M1FN", "tensor<1x1xf32>"]),
        ("e4m3 channel", None, ["tensor<8x16xf8E4M3FN>"]),
        ("nf4 group 8", None, ["tensor<8x16xi4>", "tensor<16xf32>", "tensor.extract"]),
        ("nf4 group 8", "2:4", ["structured[2, 4]", "dense<[0.000000e+00, "]),
        ("rows of 3", None, ["tensor<8x16xi3>", "tensor<8x8xf32>", "linalg.index 1"]),
        ("nested 3 group 8", None, ["tensor<8x16xi3>", "tensor<8x2xi8>", "d1 floordiv 16"]),
    ],
)
def test_values_of_tables_have_the_types_that_mlir_has_for_them(
    make_weight: Callable[..., CompressedWeight], kind: str, pattern: str | None, said: list[str]
) -> None:
    """Under a mask the first code is zero, which is what the sparse dialect leaves out."""
    text = annotated(format_of(make_weight((8, 16), kind, pattern)))
    assert all(words in text for words in said), text
