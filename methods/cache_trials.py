"""Tries of a method that keeps keys and values, for `conformance`."""

from functools import partial

import torch
from torch import Tensor

from trinity.methods.caching import CacheMethod
from trinity.methods.contract import MethodConfig
from trinity.methods.declarations import Violation
from trinity.methods.formats import CacheFormat
from trinity.methods.trials import called

SIZES = ((1, 16), (3, 64), (2, 128))  # heads, and numbers of each


def cache_violations(method: CacheMethod[MethodConfig], config: MethodConfig) -> list[Violation]:
    """What is wrong with the caches of heads of some sizes."""
    about = called(partial(method.cache_format, config))
    if not isinstance(about, CacheFormat):
        return [Violation(f"cache_format: gave {about!r}, expected a CacheFormat")]
    found, refused = [], []
    for heads, width in SIZES:
        where = f"{heads} heads of {width}"
        problem = called(partial(method.cache_problem, width, config))
        if isinstance(problem, str):
            refused.append(problem)
        elif problem is not None:
            what = f"cache_problem: gave {problem!r}, expected a text or None"
            found.append(Violation(what, where))
        else:
            found += _rounding_violations(method, config, about, (heads, width), where)
    if len(refused) == len(SIZES):
        found.append(Violation(f"nothing was tried: every width is refused ({refused[0]})"))
    return found


def _rounding_violations(
    method: CacheMethod[MethodConfig],
    config: MethodConfig,
    about: CacheFormat,
    sizes: tuple[int, int],
    where: str,
) -> list[Violation]:
    positions = 5 if about.together == 1 else about.together
    keys, values = torch.randn(2, 2, sizes[0], positions, sizes[1])
    keys[..., 3] += 20  # as a channel of keys may be
    run = partial(method.rounded_cache, keys.clone(), values.clone(), config)
    given = run.args[:2]
    torch.manual_seed(1)
    first = called(run)
    if isinstance(first, BaseException):
        return [Violation(f"raised {type(first).__name__}: {first}", where)]
    if not _are_like(first, keys):
        return [Violation("gave no keys and values of the shapes that it was given, finite", where)]
    found = []
    if not (torch.equal(given[0], keys) and torch.equal(given[1], values)):
        found.append(Violation("changed the keys or values that it was given", where))
    torch.manual_seed(2)
    again = called(run)
    if not _are_like(again, keys) or not all(map(torch.equal, first, again)):
        what = "gave others again; take a seed in the config instead of the global generator"
        found.append(Violation(what, where))
    alone = called(partial(method.rounded_cache, keys[1:], values[1:], config))
    # Products of several matrices at once may add in another order.
    if not _are_like(alone, keys[1:]) or not all(
        torch.allclose(whole[1:], part, atol=1e-4) for whole, part in zip(first, alone, strict=True)
    ):
        found.append(Violation("rounds a sequence by what others beside it hold", where))
    if about.together == 1 and not found:
        part = called(partial(method.rounded_cache, keys[:, :, :2], values[:, :, :2], config))
        if not _are_like(part, keys[:, :, :2]) or not all(
            torch.equal(whole[:, :, :2], few) for whole, few in zip(first, part, strict=True)
        ):
            found.append(Violation("its format rounds positions alone, and it does not", where))
    return found


def _are_like(found: object, keys: Tensor) -> bool:
    """Whether they are keys and values, finite."""
    return (
        isinstance(found, tuple)
        and len(found) == 2
        and all(isinstance(t, Tensor) and t.shape == keys.shape for t in found)
        and all(bool(t.isfinite().all()) for t in found)
    )
