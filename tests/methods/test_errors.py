"""methods/errors.py."""

import pytest

from trinity.methods.errors import (
    ConfigError,
    LoweringError,
    MachineError,
    RecordError,
    TrinityError,
    UnsupportedError,
    nearest,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrinityError, 1),
        (LoweringError, 1),
        (ConfigError, 2),
        (UnsupportedError, 2),
        (RecordError, 2),
        (MachineError, 3),
    ],
)
def test_every_error_has_the_exit_code_of_its_cause(error: type[TrinityError], code: int) -> None:
    assert error.exit_code == code
    assert issubclass(error, TrinityError)


def test_near_misses_are_suggested_and_far_ones_are_not() -> None:
    known = ["wanda", "magnitude", "slim-quant", "slim-lora", "slim"]
    assert nearest("wnada", known) == " Did you mean wanda?"
    assert "slim-quant" in nearest("slimquant", known)
    assert nearest("xyz", known) == ""
