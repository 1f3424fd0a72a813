"""methods/options.py."""

import pytest
import torch
from pydantic import ValidationError

from trinity.methods.contract import MethodConfig
from trinity.methods.formats import NM, Pattern, Unstructured
from trinity.methods.options import Bits, FloatName, GroupSize, PatternOption, cast


class Options(MethodConfig):
    pattern: PatternOption = NM(2, 4)
    bits: Bits = 4
    group_size: GroupSize = 128
    dtype: FloatName = "float16"


@pytest.mark.parametrize("value", ["4:8", "50%", NM(4, 8), Unstructured(0.5)], ids=str)
def test_a_pattern_is_read_from_text_or_taken_as_it_is(value: str | Pattern) -> None:
    expected = {"4:8": NM(4, 8), "50%": Unstructured(0.5)}[str(value)]
    assert Options.model_validate({"pattern": value}).pattern == expected


@pytest.mark.parametrize("sparsity", [0.5, 1 / 3])
def test_options_survive_json(sparsity: float) -> None:
    config = Options(pattern=Unstructured(sparsity), group_size="channel")
    assert Options.model_validate_json(config.model_dump_json()) == config
    assert Options.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("value", [124, 0.5, None, ["2:4"], {"n": 2, "m": 4}], ids=repr)
def test_a_pattern_that_is_no_text_is_refused_with_advice_on_quotes(value: object) -> None:
    # YAML 1.1 reads an unquoted 2:4 as the number 124, in base 60.
    with pytest.raises(ValidationError, match="quote it: YAML reads 2:4 as a number"):
        Options.model_validate({"pattern": value})


def test_text_that_is_no_pattern_is_refused_in_the_words_of_the_format() -> None:
    with pytest.raises(ValidationError, match=r"pattern 4:4: .* 1 <= N < M <= 16"):
        Options.model_validate({"pattern": "4:4"})


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_cast_goes_to_the_named_type(name: FloatName) -> None:
    assert str(cast(torch.ones(2), name).dtype) == f"torch.{name}"


def test_cast_leaves_overflow_for_the_format_to_refuse() -> None:
    assert torch.isinf(cast(torch.tensor([1e6]), "float16")).all()


@pytest.mark.parametrize("size", [0, -8, "row", 1.5])
def test_a_group_size_that_means_nothing_is_refused(size: object) -> None:
    with pytest.raises(ValidationError, match="group_size"):
        Options.model_validate({"group_size": size})
