"""Option types that several methods' configs share, read from a recipe's text."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, PositiveInt
from torch import Tensor, bfloat16, float16, float32

from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Tiles, Unstructured, parse_pattern


def _read_pattern(value: Any) -> Any:
    """Pydantic hands over whatever the recipe holds, hence Any."""
    if isinstance(value, (NM, Unstructured)):
        return value
    if isinstance(value, str):
        try:
            found = parse_pattern(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if isinstance(found, Tiles):
            msg = "dense and 2:4 tiles are what `patch` learns; expected text such as '2:4'"
            raise ValueError(msg)
        return found
    msg = "expected text such as '2:4' or '50%' (quote it: YAML reads 2:4 as a number)"
    raise ValueError(msg)


PatternOption = Annotated[
    NM | Unstructured, BeforeValidator(_read_pattern), PlainSerializer(str, return_type=str)
]
Bits = Literal[2, 3, 4, 8]
FloatName = Literal["float32", "float16", "bfloat16"]
GroupSize = PositiveInt | Literal["tensor", "channel"]

_DTYPES = {"float32": float32, "float16": float16, "bfloat16": bfloat16}


def cast(values: Tensor, name: FloatName) -> Tensor:
    """Values in a named float type; overflow to infinity is left for the format to refuse."""
    return values.to(_DTYPES[name])
