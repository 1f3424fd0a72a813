"""Dispatches of entries in one function, and the executables that they name."""

from collections.abc import Sequence

from trinity.lowering.kernels.calls import dispatch, dispatch_in_place, dispatch_pair
from trinity.lowering.kernels.decoder_calls import Typed
from trinity.lowering.kernels.lanes.executable import Compiled, Entry
from trinity.lowering.mlir.builder import Builder


class Dispatches:
    """The lines of one function."""

    def __init__(self, code: Compiled) -> None:
        """code: which has the entries"""
        self.build, self.code = Builder(), code
        self.texts: dict[str, str] = {}

    @property
    def executables(self) -> tuple[tuple[str, str], ...]:
        """What was dispatched, by name."""
        return tuple(self.texts.items())

    def dispatch(
        self,
        entry: str,
        grid: Sequence[int],
        operands: Sequence[Typed],
        result: str,
        numbers: Sequence[int],
    ) -> str:
        """A call that makes one tensor.  result: its type  -> its value"""
        return dispatch(self.build, self._symbol(entry), grid, operands, result, numbers)

    def pair(
        self,
        entry: Entry,
        grid: Sequence[int],
        operands: Sequence[Typed],
        results: tuple[str, str],
        numbers: Sequence[int],
    ) -> tuple[str, str]:
        """A call that makes two tensors.  results: their types  -> their values"""
        symbol = self._symbol(entry.name)
        return dispatch_pair(self.build, symbol, grid, operands, results, numbers)

    def in_place(
        self,
        entry: Entry,
        grid: Sequence[int],
        operands: Sequence[Typed],
        written: Sequence[str],
        numbers: Sequence[int],
    ) -> list[str]:
        """A call that writes into some of its operands.  -> their values after it"""
        symbol = self._symbol(entry.name)
        return dispatch_in_place(self.build, symbol, grid, operands, written, numbers)

    def _symbol(self, entry: str) -> str:
        name, path = self.code.executable_of(entry)
        self.texts[name] = self.code.executable(name, path)
        return f"@{name}::@{entry}"
