"""What a linear asks of `product.cuh`: entries, numbers and blocks of threads.

The order of operands and numbers is that of `ENTRY` in the source.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from trinity.lowering.kernels.padded_panels import PANEL
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.strips import refusal as refused_by_strips
from trinity.methods.formats import WeightFormat

THREADS = 256  # of a block: 8 rows of a panel's lanes, which share the inputs
TOKENS = (1, 8)  # of a block
BINDINGS = 4  # the input, the stored tensor, what the product is added to, and the result
CONSTANTS = 14
ALL, TWO_FOUR, BITMAP = 0, 1, 2
KINDS = {"float16": 16, "bfloat16": 17, "float32": 32}
SCALE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SECTIONS = ("scale", "zero_point", "stream", "starts", "offsets")
PAIRS = (  # of kind and mask, in the order of FOR_EACH_FORMAT
    *((kind, ALL) for kind in (2, 3, 4, 8, 16, 17, 32)),
    *((kind, mask) for mask in (TWO_FOUR, BITMAP) for kind in (4, 8, 16, 17, 32)),
)
ENTRIES = tuple(f"lanes_{kind}_{mask}_{tokens}" for kind, mask in PAIRS for tokens in TOKENS)

Name = Literal["", "B_", "A_"]


def refusal(weight_format: WeightFormat) -> str | None:
    """Why these kernels cannot multiply with a format, or None."""
    if weight_format.codebook or weight_format.row_codebook:
        return "values of a table"
    return "outliers" if weight_format.outliers else refused_by_strips(weight_format)


@dataclass(frozen=True)
class Launch:
    """One product with some panels of a weight, a part of its storage.

    prefix: of the names of the weight's tensors: the base, or a factor of the adapter
    after: the launch whose result is B t, to which a base's product is added
    """

    strips: Strips
    prefix: Name
    tokens: int
    part: int = 0
    after: "Launch | None" = None

    @property
    def panels(self) -> range:
        """Of the weight."""
        return self.strips.parts[self.part]

    @property
    def tensor(self) -> str:
        """The name of the stored tensor."""
        return self.prefix + self.strips.names[self.part]

    @property
    def outputs(self) -> int:
        """That are computed.  t = A x is whole blocks, as B takes it, the padding zeros."""
        last = self.strips.format.shape[0] - self.panels.start * PANEL
        whole = len(self.panels) * PANEL
        return whole if self.prefix == "A_" else min(whole, last)

    @property
    def tile(self) -> int:
        """Tokens of a block."""
        return TOKENS[0] if self.tokens == 1 else TOKENS[1]

    @property
    def entry(self) -> str:
        """The kernel of its format."""
        strips, grid = self.strips, self.strips.format.grid
        kind = grid.bits if grid else KINDS[str(strips.format.dtype)]
        mask = TWO_FOUR if strips.two_four else BITMAP if strips.streamed else ALL
        return f"lanes_{kind}_{mask}_{self.tile}"

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along outputs and tokens."""
        return len(self.panels), -(-self.tokens // self.tile)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The constants of a call, 32 bits each."""
        strips, grid = self.strips, self.strips.format.grid
        sections = strips.sections(len(self.panels))
        starts = (sections[key].start // 4 if key in sections else 0 for key in SECTIONS)
        scale = SCALE_TYPES[getattr(torch, grid.scale_dtype)] if grid else 0
        adds = (1, self.panels.start * PANEL, self.after.outputs) if self.after else (0, 0, 0)
        about = (scale, int(not strips.symmetric), *adds)
        return (self.outputs, self.tokens, strips.blocks, strips.span, *starts, *about)


def launches(strips: Strips, tokens: int) -> tuple[Launch, ...]:
    """`t = A x` and `B t`, if there is an adapter, and `W x [+ B t]` in parts; in order."""
    after, before = None, tuple[Launch, ...]()
    if factors := strips.factors:
        after = Launch(factors["B"], "B_", tokens)
        before = Launch(factors["A"], "A_", tokens), after
    parts = range(len(strips.parts))
    return (*before, *(Launch(strips, "", tokens, part, after) for part in parts))
