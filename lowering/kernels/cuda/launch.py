"""Which kernels a linear launches, on how many blocks, with which numbers.

The order of operands and constants is that of `ENTRY` in product.cuh, the size of blocks of threads
that of `Block` in terms.cuh.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.padded_panels import PANEL

DIGITS = 3  # of a float32 in bfloat16
TOKENS = (8, 16, 32)  # of a block of threads, one entry each
BINDINGS = 11  # two terms of an input and four stored tensors, and the result
CONSTANTS = 13
KINDS = {None: 0, "codes": 1, "two_four": 2, "float16": 3, "bfloat16": 4}
SCALE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

Source = Literal["x", "low"]


@dataclass(frozen=True)
class Term:
    """A weight in the tensors `<prefix>tile_...` and what it is multiplied with.

    source: the linear's input, or t = A x
    digits: activations are float32 in bfloat16 digits, not float16
    """

    tiles: Tiles
    prefix: str
    source: Source
    digits: bool

    @property
    def stored(self) -> tuple[str, str, str, str]:
        """Names of weight, places, scale and zero point; the weight stands for those it lacks."""
        has = self.tiles.shapes()
        weight = "tile_values" if self.tiles.format.dtype else "tile_codes"
        wanted = (weight, "tile_places", "tile_scale", "tile_zero_point")
        names = [name if name in has else weight for name in wanted]
        weight, places, scale, zero_point = (f"{self.prefix}{name}" for name in names)
        return weight, places, scale, zero_point

    @property
    def constants(self) -> tuple[int, ...]:
        """Kind, blocks, span, type of the scale, and whether there are zero points."""
        tiles, grid = self.tiles, self.tiles.format.grid
        if grid is None:
            return (KINDS[tiles.format.dtype], tiles.blocks, tiles.span, 0, 0)
        kind = KINDS["two_four" if tiles.two_four else "codes"]
        scale = SCALE_TYPES[getattr(torch, grid.scale_dtype)]
        return (kind, tiles.blocks, tiles.span, scale, int(not grid.symmetric))


@dataclass(frozen=True)
class Launch:
    """One kernel: the sum of its terms for so many tokens.

    low: the result is t in digits, uint16 [panels, digits, tokens, 32], and not y,
        float32 [tokens, out]
    """

    first: Term
    second: Term | None
    tokens: int
    low: bool = False

    @property
    def entry(self) -> str:
        """The kernel: for the type of the activations and the tokens of a block."""
        return f"product_f{32 if self.first.digits else 16}_{self.tile // 8}"

    @property
    def tile(self) -> int:
        """Tokens of a block."""
        return next((size for size in TOKENS if self.tokens <= size), TOKENS[-1])

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 512 if self.tile == TOKENS[0] else 256

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along outputs and tokens; with more than 8 tokens a block has two panels."""
        panels = self.first.tiles.panels
        return -(-panels // (1 if self.tile == TOKENS[0] else 2)), -(-self.tokens // self.tile)

    @property
    def terms(self) -> tuple[Term, Term]:
        """Both terms; the first stands for a second that is not there."""
        return self.first, self.second or self.first

    @property
    def constants(self) -> tuple[int, ...]:
        """The numbers of a call, 32 bits each."""
        out = self.first.tiles.format.shape[0]
        second = self.second.constants if self.second else (0,) * len(self.first.constants)
        return (out, self.tokens, int(self.low), *self.first.constants, *second)

    @property
    def result(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of what it writes."""
        tiles = self.first.tiles
        if self.low:
            return (tiles.panels, DIGITS, self.tokens, PANEL), torch.int16
        return (self.tokens, tiles.format.shape[0]), torch.float32


def launches(tiles: Tiles, tokens: int, dtype: str) -> tuple[Launch, ...]:
    """What computes `x W^T` [+ `(x A^T) B^T`], in order.

    dtype: of the model.  Inputs of a float16 model are float16 numbers, and go to float16 products
    as they are; all others, scaled inputs and t keep their 24 bits.
    """
    base = Term(tiles, "", "x", _digits(tiles, dtype))
    if not tiles.factors:
        return (Launch(base, None, tokens),)
    first, second = tiles.factors["A"], tiles.factors["B"]
    low = Launch(Term(first, "A_", "x", _digits(first, dtype)), None, tokens, low=True)
    return low, Launch(base, Term(second, "B_", "low", digits=True), tokens)


def _digits(tiles: Tiles, dtype: str) -> bool:
    grid, values = tiles.format.grid, tiles.format.dtype
    scaled = grid is not None and grid.input_scale is not None
    return dtype != "float16" or scaled or values == "bfloat16"
