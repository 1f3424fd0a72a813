"""What a linear asks of `product.cuh`: entries, numbers and blocks of threads.

The order of operands and numbers is that of `ENTRY` in the source.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from trinity.lowering.kernels.lanes.executable import Entry
from trinity.lowering.kernels.padded_panels import BLOCK, PANEL
from trinity.lowering.kernels.strips import Strips

TOKENS = (1, 8)  # of a block
READS = 3  # the input, the stored tensor, and what the product is added to
CONSTANTS = 22
ALL, TWO_FOUR, BITMAP = 0, 1, 2
KINDS = {"float16": 16, "bfloat16": 17, "float32": 32}
TABLE = 64  # and the bits of a code: the kind of codes of a table
SCALE_TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float8_e8m0fnu: 3,
    torch.float8_e4m3fn: 4,
}
SECTIONS = ("scale", "zero_point", "levels", "stream", "starts", "offsets")
TABLES = tuple(TABLE + bits for bits in (2, 3, 4, 8))
PAIRS = (  # of kind and mask, in the order of FOR_EACH_FORMAT
    *((kind, ALL) for kind in (2, 3, 4, 8, 16, 17, 32, *TABLES)),
    *((kind, mask) for mask in (TWO_FOUR, BITMAP) for kind in (4, 8, 16, 17, 32, *TABLES[2:])),
)
ENTRIES = tuple(
    Entry(f"lanes_{kind}_{mask}_{tokens}", READS, 1, CONSTANTS)
    for kind, mask in PAIRS
    for tokens in TOKENS
)

Name = Literal["", "B_", "A_"]


@dataclass(frozen=True)
class Launch:
    """One product with some panels of a weight, a part of its storage.

    prefix: of the names of the weight's tensors: the base, or a factor of the adapter
    after: the launch whose result is B t, to which a base's product is added
    added: whether numbers that the caller gives, [tokens, out], are what it is added to
    """

    strips: Strips
    prefix: Name
    tokens: int
    part: int = 0
    after: "Launch | None" = None
    added: bool = False

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
        strips, about = self.strips, self.strips.format
        kind = about.code_bits or KINDS[str(about.dtype)]
        kind += TABLE if about.codebook or about.row_codebook else 0
        mask = TWO_FOUR if strips.two_four else BITMAP if strips.streamed else ALL
        return f"lanes_{kind}_{mask}_{self.tile}"

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along outputs and tokens."""
        return len(self.panels), -(-self.tokens // self.tile)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The constants of a call, 32 bits each."""
        strips, own = self.strips, self.strips.format.row_codebook
        starts = (self._begins.get(key, 0) for key in SECTIONS)
        geometry = (strips.blocks, BLOCK // strips.step, strips.span)
        values = strips.format.coded
        named = values.scale_dtype if values else own.dtype if own else "float32"
        codes = (
            SCALE_TYPES[getattr(torch, named)],
            int(not strips.symmetric),
            int(own is not None),
        )
        adds = (0, 0, 0)
        if self.after or self.added:
            adds = (1, self.panels.start * PANEL, strips.format.shape[0])
        return (self.outputs, self.tokens, *geometry, *starts, *codes, *self._outliers, *adds)

    @property
    def _begins(self) -> dict[str, int]:
        """Where each section of the tensor begins, in 32-bit words."""
        sections = self.strips.sections(len(self.panels))
        return {name: section.start // 4 for name, section in sections.items()}

    @property
    def _outliers(self) -> tuple[int, ...]:
        """How many an output has, where their columns and values begin, whether columns have 32
        bits, and the type of values.
        """
        outliers, begins = self.strips.format.outliers, self._begins
        if outliers is None:
            return (0, 0, 0, 0, 0)
        wide = self.strips.sections(0)["outlier_columns"].dtype == torch.int32
        kind = SCALE_TYPES[getattr(torch, outliers.dtype)]
        places = (begins["outlier_columns"], begins["outlier_values"])
        return (outliers.room, *places, int(wide), kind)


def launches(strips: Strips, tokens: int, added: bool = False) -> tuple[Launch, ...]:
    """`t = A x` and `B t`, if there is an adapter, and `W x [+ B t]` in parts; in order.

    added: whether the first that makes outputs adds its own to numbers of the caller's
    """
    after, before = None, tuple[Launch, ...]()
    if factors := strips.factors:
        after = Launch(factors["B"], "B_", tokens, added=added)
        before = Launch(factors["A"], "A_", tokens), after
    own = added and after is None
    parts = range(len(strips.parts))
    return (*before, *(Launch(strips, "", tokens, part, after, own) for part in parts))
