"""Which matrices are silently wrong: by what they hold, beside their neighbours, or absent."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, isfinite, sqrt
from typing import TypeVar

import torch
from torch import Tensor

from trinity.harness.audit.layout import Decoded, Fault

T = TypeVar("T")
NUMBER = re.compile(r"\d+")
INDEX = re.compile(r"[0-9]{1,9}")  # of a block or an expert: of more digits there is none
FACTOR = 10.0  # between a layer and its neighbours
NEIGHBOURS = 4  # on either side, in the order of blocks and experts
FEWEST = 2  # neighbours, to say anything
ENOUGH = 32  # equal scales that cannot be a coincidence
ROWS = 4096  # that are looked at, as float64, at once


@dataclass(frozen=True)
class Size:
    """How large the numbers of a matrix are.  scale: median step, None of plain floats"""

    rms: float
    scale: float | None


def pieces(name: str, decoded: Decoded) -> Iterator[tuple[str, Decoded]]:
    """A matrix, or each one of a stack: experts in one tensor."""
    values = decoded.values
    if values is None or values.ndim < 3:
        yield name, decoded
        return
    stack = values.reshape(-1, *values.shape[-2:])
    scales = decoded.scales
    parts = scales.reshape(len(stack), -1) if scales is not None else None
    for number, one in enumerate(stack):
        own = parts[number] if parts is not None else None
        yield f"{name}.{number}", Decoded(one, None, own)


def of_contents(decoded: Decoded, size: Size | None, in_block: bool) -> list[str]:
    """What is wrong with one matrix by itself.

    size: `size_of` it
    in_block: embeddings and heads may have rows of zeros, of tokens that are none
    """
    faults = []
    codes, scales, values = decoded.codes, decoded.scales, decoded.values
    if scales is not None:
        wrong = int((~torch.isfinite(scales.float())).sum())
        zero = int((scales == 0).sum())
        if wrong:
            faults.append(f"{wrong:,} of {scales.numel():,} scales are NaN or infinite")
        if zero and (in_block or zero == scales.numel()):
            faults.append(f"{zero:,} of {scales.numel():,} scales are zero")
        elif scales.numel() >= ENOUGH and _one_number(scales):
            faults.append(f"all {scales.numel():,} scales are {float(scales.flatten()[0]):.4g}")
    if codes is not None and _one_number(codes):
        faults.append(f"every code is {int(codes.flatten()[0])}")
    if not faults and values is not None and size is not None:
        if not isfinite(size.rms):
            wrong = sum(int((~torch.isfinite(part)).sum()) for part in parts(values))
            faults.append(f"{wrong:,} of {values.numel():,} weights are NaN or infinite")
        elif _one_number(values):
            faults.append(f"every weight is {float(values.flatten()[0]):.4g}")
    return faults


def size_of(decoded: Decoded) -> Size | None:
    """How large its numbers are, or None where they are not known."""
    if decoded.values is None:
        return None
    norms = [torch.linalg.vector_norm(p, dtype=torch.float64) for p in parts(decoded.values)]
    scale = None
    if decoded.scales is not None:
        scale = float(decoded.scales.float().abs().flatten().median())
    return Size(hypot(*map(float, norms)) / sqrt(max(1, decoded.values.numel())), scale)


def beside_neighbours(sizes: Mapping[str, Size]) -> list[Fault]:
    """Layers that are ten times larger or smaller than most of the nearest of their kind.

    sizes: of layers of blocks that have no other fault
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in sizes:
        kinds[NUMBER.sub("*", name)].append(name)
    faults = []
    for names in kinds.values():
        names.sort(key=numbers)
        for at, name in enumerate(names):
            near = nearest(names, at)
            own = sizes[name]
            for what, mine, others in (
                ("weights (root mean square)", own.rms, [sizes[other].rms for other in near]),
                ("scales (median)", own.scale, [sizes[other].scale for other in near]),
            ):
                said = _far(what, mine, [other for other in others if other is not None])
                if said:
                    faults.append(Fault(name, said))
                    break
    return faults


def nearest(kind: Sequence[T], at: int) -> list[T]:
    """The neighbours of one of a kind, which are in the order of blocks and experts."""
    return [*kind[max(0, at - NEIGHBOURS) : at], *kind[at + 1 : at + 1 + NEIGHBOURS]]


def absent(names: Sequence[str], blocks: int | None) -> list[Fault]:
    """Blocks without any matrix, and modules that lack what all the others of their kind have.

    names: of every matrix   blocks: that the configuration says there are
    """
    faults = _missing({numbers(name)[0] for name in names if numbers(name)}, blocks or 0)
    modules: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        parent, _, part = name.rpartition(".")
        if numbers(parent):
            modules[NUMBER.sub("*", parent)][parent].add(part)
    for kin in modules.values():
        counted = Counter(frozenset(held) for held in kin.values())
        whole, times = counted.most_common(1)[0]
        for parent, held in kin.items():
            if held < whole and counted[frozenset(held)] == 1 and times >= FEWEST:
                missing = ", ".join(sorted(whole - held))
                faults.append(Fault(parent, f"lacks {missing}, which the others have"))
    return faults


def _missing(there: Set[int], blocks: int) -> list[Fault]:
    """A fault for each gap: a configuration may claim more blocks than can be listed."""
    if not there:
        return []
    ends = [-1, *sorted(number for number in there if number < blocks), blocks]
    faults = []
    for before, after in pairwise(ends):
        if after - before == 2:
            faults.append(Fault(f"block {before + 1}", "holds no matrix at all"))
        elif after - before > 2:
            faults.append(Fault(f"blocks {before + 1} to {after - 1}", "hold no matrix at all"))
    return faults


def numbers(name: str) -> tuple[int, ...]:
    """The numbers in a module's name: its block, its expert."""
    return tuple(int(part) for part in name.split(".") if INDEX.fullmatch(part))


def _far(what: str, mine: float | None, others: Sequence[float]) -> str | None:
    """What to say of a number that is far from more than half of its neighbours'."""
    if mine is None or len(others) < FEWEST:
        return None
    larger = [other for other in others if mine >= FACTOR * other]
    smaller = [other for other in others if mine * FACTOR <= other]
    if max(len(larger), len(smaller)) * 2 <= len(others):
        return None
    middle = sorted(others)[len(others) // 2]
    return f"{what} are {mine:.3g}, its neighbours' {middle:.3g}"


def _one_number(tensor: Tensor) -> bool:
    if tensor.numel() < 2:
        return False
    flat = tensor.reshape(-1)  # where the first row is enough, the others are not compared
    return all(bool((part == flat[0]).all()) for part in (flat[: tensor.shape[-1]], flat))


def parts(values: Tensor) -> Iterator[Tensor]:
    """Rows, some at a time: a head is too large for a copy of the whole."""
    rows = values.reshape(-1, values.shape[-1])
    for at in range(0, len(rows), ROWS):
        yield rows[at : at + ROWS]
