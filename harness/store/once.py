"""Work that an object does the first time it is asked, and whose result it remembers.

Not a property: whoever reads `run.compress()` sees that it may take an hour.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def once(method: Callable[[S], T]) -> Callable[[S], T]:
    """A method without arguments, done once for each object."""
    name = f"_{method.__name__} once"

    @wraps(method)
    def remembered(self: S) -> T:
        kept: dict[str, Any] = vars(self)
        if name not in kept:
            kept[name] = method(self)
        result: T = kept[name]
        return result

    return remembered
