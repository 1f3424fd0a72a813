"""How a model calls its blocks, seen once: afterwards each of them is called alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class BlockCall:
    """How the model calls one block, apart from the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


RecordedCall = tuple[Tensor, BlockCall]


def hidden_of(output: Any) -> Tensor:
    """The hidden states among what a block gives: some give a tuple that begins with them."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


class _EnoughError(Exception):
    """Ends a forward whose calls are all recorded."""


class _TakesFirstError(Exception):
    """The model takes the first of what a block gives: its blocks give tuples."""


def recorded_calls(model: nn.Module, blocks: nn.ModuleList, ids: Tensor) -> list[RecordedCall]:
    """How a model calls every block, with what hidden states; each block gives its input.

    Blocks need no weights for it.  Masks and rotary embeddings do not depend on the hidden states,
    so one such pass tells how to call each block alone, also where kinds of attention alternate.
    ids: int64 [batch, seq]
    """
    try:
        return _recorded(model, blocks, ids, lambda hidden: hidden)
    except _TakesFirstError:
        return _recorded(model, blocks, ids, lambda hidden: (hidden,))


def _recorded(
    model: nn.Module, blocks: nn.ModuleList, ids: Tensor, given: Callable[[Tensor], object]
) -> list[RecordedCall]:
    """given: what a block gives, of its input"""
    calls: list[RecordedCall] = []

    def record(hidden: Tensor, *args: Any, **kwargs: Any) -> object:
        if calls and hidden.shape != calls[0][0].shape:
            raise _TakesFirstError
        calls.append((hidden, BlockCall(args, kwargs)))
        if len(calls) == len(blocks):
            raise _EnoughError
        return given(hidden)

    for block in blocks:
        block.forward = record  # shadows the class's method, deleted below
    try:
        model(input_ids=ids, use_cache=False)
    except _EnoughError:
        return calls
    finally:
        for block in blocks:
            del block.forward
    raise AssertionError("a model that does not call every block once")


def logits_after(model: nn.Module, blocks: nn.ModuleList, ids: Tensor, hidden: Tensor) -> Tensor:
    """The model's logits if its blocks had made these hidden states; differentiable in them.

    Blocks need no weights for it.  ids: int64 [batch, seq]   hidden: [batch, seq, width]
    -> [batch, seq, vocabulary]
    """
    for given in (hidden, (hidden,)):

        def instead(entering: Tensor, *args: Any, to: object = given, **kwargs: Any) -> object:
            if entering.shape != hidden.shape:
                raise _TakesFirstError
            return to

        for block in blocks:
            block.forward = instead  # as in `_recorded`
        try:
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        except _TakesFirstError:
            continue
        finally:
            for block in blocks:
                del block.forward
        if logits.ndim == hidden.ndim:
            return logits
    raise AssertionError("a model that takes neither hidden states nor a tuple of its blocks")
