"""Functions of launches, run line by line with the kernels compiled for the CPU: a module's text is
all that is taken from the code under test.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

TYPES = {"f32": torch.float32, "i16": torch.int16}
NAME = r"%[\w.]+"
PRODUCT_THREADS = 512  # of a block of `product_f32_1`, which one token takes


class Interpreted:
    """A module as `decoders.Case` calls it.

    programs: that run an entry, by what entries' names begin with: "decoder", "lanes", "product"
    """

    def __init__(self, text: str, programs: Mapping[str, Path]) -> None:
        self.programs = programs
        self.functions = {
            name: (re.findall(rf"({NAME}):", arguments), body)
            for name, arguments, body in re.findall(
                r"func\.func @(\w+)\((.*?)\) -> [^\n]*\{\n(.*?)\n\}", text, re.DOTALL
            )
        }

    def put(self, tensor: Tensor) -> Tensor:
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        return tensor

    def call(self, name: str, given: Sequence[Tensor]) -> Tensor:
        """The first result; what is written in place is in the arguments."""
        arguments, body = self.functions[name]
        self.values: dict[str, Tensor | int] = dict(zip(arguments, given, strict=True))
        for line in body.splitlines():
            if found := re.match(rf"  return ({NAME})", line):
                result = self.values[found[1]]
                assert isinstance(result, Tensor)
                return result
            self._step(line)
        raise AssertionError("no return")

    def _step(self, line: str) -> None:
        results, _, what = line.strip().partition(" = ")
        if found := re.match(r"arith\.constant (-?\d+) : (index|i32)", what):
            self.values[results] = int(found[1])
        elif found := re.match(rf"tensor\.(?:expand|collapse)_shape ({NAME}) .* into (.*)", what):
            tensor = self.values[found[1]]
            assert isinstance(tensor, Tensor)
            self.values[results] = tensor.view(self._shape(found[2]))
        else:
            self._dispatch(results, what)

    def _dispatch(self, results: str, what: str) -> None:
        found = re.match(r"flow\.dispatch @(\w+?)\w*::@(\w+)\[(.*?)\]\((.*?)\) : .* -> (.*)", what)
        assert found, what
        entry, grid, operands, kinds = found.groups()[1:]
        taken = [self.values[name] for name in operands.split(", ")]
        numbers = [of for of in taken if not isinstance(of, Tensor)]
        buffers = [of for of in taken if isinstance(of, Tensor)]
        sizes = [int(self.values[name]) for name in grid.split(", ")]
        if in_place := re.match(r"\((%.*)\)", kinds):
            self._run(entry, sizes, numbers, buffers, in_place[1].count("%"))
            for name, written in zip(results.split(", "), in_place[1].split(", "), strict=True):
                self.values[name] = self.values[written]
        else:
            made = [_unwritten(*of) for of in re.findall(r"tensor<([\dx]+)x(\w+)>", kinds)]
            self._run(entry, sizes, numbers, [*buffers, *made], len(made))
            self.values |= zip(results.split(", "), made, strict=True)

    def _run(
        self,
        entry: str,
        grid: Sequence[int],
        numbers: Sequence[int],
        buffers: Sequence[Tensor],
        writes: int,
    ) -> None:
        """One launch, which writes the last of the buffers."""
        data = [of.contiguous().flatten().view(torch.uint8).numpy().tobytes() for of in buffers]
        kind = entry.partition("_")[0]
        counts = [len(numbers), len(data)] if kind == "decoder" else []
        threads = [PRODUCT_THREADS] if kind == "product" else []
        words = [entry, *threads, *grid, *counts, *numbers, *map(len, data)]
        head = " ".join(map(str, words)) + "\n"
        done = subprocess.run(
            [str(self.programs[kind])],
            input=head.encode() + b"".join(data),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[:3000]
        at = len(done.stdout) - sum(map(len, data[len(data) - writes :]))
        for buffer, old in list(zip(buffers, data, strict=True))[len(data) - writes :]:
            new = torch.frombuffer(bytearray(done.stdout[at : at + len(old)]), dtype=buffer.dtype)
            buffer.copy_(new.view(buffer.shape))
            at += len(old)

    @staticmethod
    def _shape(kind: str) -> list[int]:
        found = re.match(r"tensor<([\dx]+)x\w+>", kind)
        assert found, kind
        return [int(size) for size in found[1].split("x")]


def _unwritten(sizes: str, kind: str) -> Tensor:
    """Memory that nothing has written: NaN, or what is no digit of a number."""
    fill = float("nan") if kind == "f32" else -1
    return torch.full([int(size) for size in sizes.split("x")], fill, dtype=TYPES[kind])
