"""Which kinds of values there are.  Reading one table tells all that are built in."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from trinity.methods.errors import RecordError
from trinity.methods.formats.adapter import Adapted
from trinity.methods.formats.codebook import Codebook, Coded
from trinity.methods.formats.dense import Dense, Floats
from trinity.methods.formats.nested_grid import Nested, NestedGrid
from trinity.methods.formats.outliers import WithOutliers
from trinity.methods.formats.quantized import Grid, Quantized
from trinity.methods.formats.row_codebook import RowCodebook, RowCoded
from trinity.methods.formats.sign_sum import SignedTerms, SignSum
from trinity.methods.formats.sparse import Sparse
from trinity.methods.formats.values import Values, ValuesFormat
from trinity.methods.formats.vector_codebook import VectorCodebook, VectorCoded
from trinity.methods.plugins import OURS, Group

GROUP = "trinity.formats"
PROTOCOL = "trinity.methods.formats.values.ValuesFormat"
BUILT_IN: Mapping[str, type[ValuesFormat]] = {
    "dtype": Floats,
    "grid": Grid,
    "codebook": Codebook,
    "row_codebook": RowCodebook,
    "nested_grid": NestedGrid,
    "signed_terms": SignedTerms,
    "vector_codebook": VectorCodebook,
}
TAKEN = (
    *("shape", "label", "pattern", "outliers", "adapter", "inputs"),
    *("transposed", "rank", "A", "B"),
)
"""Keys of a format's JSON that name something else, and no kind can have."""

_PLUGINS = Group(
    GROUP,
    "kind of values",
    lambda: [(kind, f"{found.__module__}:{found.__name__}") for kind, found in BUILT_IN.items()],
)


def names() -> list[str]:
    """Every kind that someone registers, sorted; loads no plugin."""
    return _PLUGINS.names()


def get(kind: str) -> type[ValuesFormat]:
    """What values of a kind are without their numbers; ConfigError if nobody registers it."""
    owner = _PLUGINS.owner(kind)
    if owner.distribution == OURS:
        return BUILT_IN[kind]
    found = _PLUGINS.load(kind)
    if not isinstance(found, type):
        what = f"is of type {type(found).__name__}, not a class that says what values are"
        raise _PLUGINS.broken(kind, f"'{owner.target}' {what} ({PROTOCOL})")
    if getattr(found, "kind", None) != kind or kind in TAKEN:
        what = f"is not a class whose `kind` is '{kind}' ({PROTOCOL}; {', '.join(TAKEN)} are taken)"
        raise _PLUGINS.broken(kind, f"'{owner.target}' {what}")
    return found


def read(data: Mapping[str, Any]) -> ValuesFormat:
    """The values in the JSON of a weight's or factor's format; RecordError if they are not one."""
    found = [key for key in data if key not in TAKEN]
    if len(found) != 1:
        msg = f"values: expected one kind of {', '.join(names())}, found {found or 'none'}."
        raise RecordError(msg)
    return get(found[0]).from_json(data[found[0]])


def is_weight(found: object) -> TypeGuard[Values | Sparse | WithOutliers | Adapted]:
    """Whether something is a compressed weight, all of whose values are of kinds that are known.

    Not isinstance: a subclass's own decode would be lost when the weight is stored.
    """
    if type(found) is Adapted or type(found) is WithOutliers:
        return is_weight(found.base)
    if type(found) is Sparse:
        return is_values(found.values)
    return is_values(found)


def is_values(found: object) -> TypeGuard[Values]:
    """Whether something is the numbers of a kind that is known."""
    if type(found) in (Dense, Quantized, Coded, RowCoded, Nested, VectorCoded, SignSum):
        return True
    layout = getattr(found, "values_format", None)
    kind = getattr(type(layout), "kind", None)
    if not isinstance(kind, str) or not _PLUGINS.owners(kind):
        return False
    return type(layout) is get(kind) and type(found) is layout.numbers
