"""How large tiles are in which a linear of many tokens is computed (tiles.glsl)."""

from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.dots import dotted
from trinity.lowering.kernels.vulkan.launch import TOKENS, Launch

SIZES = (32, 64)  # tokens of a workgroup
FEW = TOKENS[-1]  # of a workgroup that is no tile
LANES, ROWS = 16, 8  # of a workgroup: 128 lanes, which every device has
PANELS = 2  # of a workgroup: with 64 tokens, a block of inputs takes the 16 KB of shared memory
# Instructions of a workgroup for a block, in those that a token's products take: to unpack weights
# and to bring inputs is so much more, for eight tokens of the other way and for a tile
# (docs/diary/gpu-floors.md counts it for AMD's GPUs).
MORE = {FEW: 3, 32: 8, 64: 8}
# Fewer workgroups leave units of a large GPU idle: an H100 has 132, an RX 7900 XTX 96.  The other
# way a workgroup's rows divide the inputs among them, and more lanes have work.
FILL = 128


def workgroups(launch: Launch, size: int) -> tuple[int, int]:
    """Along outputs and tokens, at so many tokens each."""
    return -(-len(launch.panels) // PANELS), -(-launch.tokens // size)


def sizes(strips: Strips) -> tuple[int, ...]:
    """Tokens that a tile of a weight may have; none where `product.comp`'s other way is for all.

    It has outliers, tables of each output, two scales for a block, and inputs that are bytes.
    """
    about = strips.format
    if about.outliers or about.row_codebook or strips.step < BLOCK or dotted(strips):
        return ()
    # Levels take up to 1 KB of the shared memory that the largest tile fills.
    return SIZES[:-1] if about.codebook else SIZES


def tile_of(launch: Launch) -> int | None:
    """Tokens of a tile, or None for the other way.

    Of that and the sizes that make enough workgroups, what takes the fewest instructions.
    """
    work = {size: workgroups(launch, size) for size in sizes(launch.first.strips)}
    enough = [size for size, (across, down) in work.items() if across * down >= FILL]
    best = min([FEW, *enough], key=lambda size: -(-launch.tokens // size) * (size + MORE[size]))
    return None if best == FEW else best
