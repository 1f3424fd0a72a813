"""Logits that are no numbers: nothing is scored with them, and the layer that made them is named.

A logit of minus infinity is a number here: that token cannot be.  NaN and plus infinity are not,
nor is a row in which no token can be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from trinity.harness.engines.engine import Engine
from trinity.methods.errors import ConfigError


class NotFiniteError(ConfigError):
    """A model whose logits hold NaN or infinity has no score."""


def are_numbers(logits: Tensor) -> bool:
    """Whether every row is a distribution.  logits: float [..., vocab]"""
    largest = logits.amax(dim=-1)  # NaN where any is
    return bool(largest.isfinite().all())


def logits(engine: Engine, ids: Tensor) -> Tensor:
    """An engine's logits, refused if they are not numbers.

    ids: int64 [seq]  ->  float32 [seq, vocab]
    """
    found = engine.logits(ids)
    if not are_numbers(found):
        raise refuse(engine, ids)
    return found


def refuse(engine: Engine, ids: Tensor) -> NotFiniteError:
    """The error for a model whose logits on these tokens are not numbers.  ids: int64 [seq]

    Reads them a second time to find the layer, where the engine is a model in torch.
    """
    where = "Its layers cannot be looked at one by one: evaluate it with the engine torch."
    model = getattr(engine, "model", None)
    if isinstance(model, nn.Module):
        with first_not_finite(model) as found:
            again = engine.logits(ids)
        where = f"The first that is not is {found[0]}." if found else "Its layers' outputs are."
        if are_numbers(again):
            where = "Read again by itself, this text gives numbers: please report this."
    msg = (
        f"the logits of the model in {engine.name} hold NaN or infinity, so there is nothing to "
        f"score. {where} Compress it in another way, or use a wider type (`model.dtype`)."
    )
    return NotFiniteError(msg)


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """While it lasts, a forward of the model fills the list with the first module, in order of
    execution, that gets or makes NaN or infinity.
    """
    found: list[str] = []

    def look(name: str, what: str, values: Any, module: nn.Module) -> None:
        if found or all(bool(t.isfinite().all()) for t in _floats(values)):
            return
        broken = [key for key, p in module.named_parameters(recurse=False) if not _finite(p)]
        because = f", whose {broken[0]} holds NaN or infinity" if broken else ""
        found.append(f"the {what} of {name}{because}")

    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, name=name: look(
                        name, "input", (*args, kwargs.get("hidden_states")), m
                    ),
                    with_kwargs=True,
                ),
                module.register_forward_hook(
                    lambda m, _, output, name=name: look(name, "output", output, m)
                ),
            ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def said_of(what: str) -> Iterator[None]:
    """Put what was being measured before the refusal: 'task piqa: the logits of ...'."""
    try:
        yield
    except NotFiniteError as error:
        msg = f"{what}: {error}"
        raise NotFiniteError(msg) from error


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _floats(values: Any) -> Iterator[Tensor]:
    """The float tensors in what a module of a third party takes or gives."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _floats(value)
