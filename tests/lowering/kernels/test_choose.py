"""Which kernels a processor gets."""

from trinity.lowering.kernels.choose import DIGIT_FEATURES, flavour_of


def test_matrix_units_are_used_where_they_and_the_vector_instructions_are() -> None:
    assert flavour_of(DIGIT_FEATURES, tiles=True) == "amx"
    assert flavour_of(DIGIT_FEATURES, tiles=False) == "digits"


def test_a_processor_without_one_of_the_instructions_gets_floats() -> None:
    for missing in DIGIT_FEATURES:
        assert flavour_of(DIGIT_FEATURES - {missing}, tiles=True) == "floats"
