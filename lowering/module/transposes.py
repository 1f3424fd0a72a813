"""What IREE 3.13's code for Vulkan must not fuse: a norm and the transposition of its result.

Where the result of a sum over a head's numbers is used transposed in the same shader, the sum lies
in memory that the workgroup shares, one thread reads what another wrote, and no barrier stands
between them: logits are garbage or NaN.  Cohere's norms of queries and keys are such a case; where
a norm's weight is one for all heads, heads and positions become one dimension first, and nothing
is transposed in the sum's shader.
"""

import re
from collections.abc import Iterator

# What may be fused with the sum before it.
POINTWISE = "|".join(
    re.escape(name)
    for name in (
        "torch.aten.mul.Tensor",
        "torch.prims.convert_element_type",
    )
)
POINTWISE_RESULT = re.compile(rf"^\s*(%\w+) = (?:{POINTWISE}) ")
TRANSPOSED = re.compile(
    r"^(?P<indent>\s*)%\w+ = torch\.aten\.permute (?P<operand>%\w+), .* : "
    r"(?P<type>!torch\.vtensor<\[(?P<sizes>[\d,]+)\],(?P<element>\w+)>), "
)


def kept_apart(text: str) -> str:
    """A target-stage text in which a barrier, which IREE fuses nothing across, stands before every
    transposition of a pointwise result.
    """
    return "".join(_lines(text))


def _lines(text: str) -> Iterator[str]:
    pointwise: set[str] = set()
    for number, line in enumerate(text.splitlines(keepends=True)):
        if line.lstrip().startswith("func.func"):
            pointwise.clear()  # values are named by function
        if found := POINTWISE_RESULT.match(line):
            pointwise.add(found[1])
        found = TRANSPOSED.match(line)
        if found is None or found["operand"] not in pointwise:
            yield line
            continue
        operand, tensor = (
            found["operand"],
            f"tensor<{found['sizes'].replace(',', 'x')}x{found['element']}>",
        )
        plain, held, back = (f"%{step}_{number}" for step in ("plain", "held", "apart"))
        for made in (
            f"{plain} = torch_c.to_builtin_tensor {operand} : {found['type']} -> {tensor}",
            f"{held} = util.optimization_barrier {plain} : {tensor}",
            f"{back} = torch_c.from_builtin_tensor {held} : {tensor} -> {found['type']}",
        ):
            yield f"{found['indent']}{made}\n"
        yield line.replace(f" {operand},", f" {back},", 1)
