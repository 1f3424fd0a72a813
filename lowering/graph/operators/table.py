"""Every opaque operator that a step may call."""

from trinity.lowering.graph.operators.attention import AttentionOperator
from trinity.lowering.graph.operators.block import BlockOperator
from trinity.lowering.graph.operators.linear import LinearOperator
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.plan import Lowering
from trinity.methods.errors import UnsupportedError


def operators_of(plan: Lowering) -> tuple[Operator, ...]:
    """In the order in which their modules take others' places: what holds linears comes later."""
    blocks, attention = BlockOperator(plan), AttentionOperator(plan)
    if plan.cache:
        _check_cache(plan, blocks, attention)
    return (LinearOperator(plan), attention, blocks)


def _check_cache(plan: Lowering, blocks: BlockOperator, attention: AttentionOperator) -> None:
    """UnsupportedError where a cache of codes would be read by something else than our kernels."""
    assert plan.cache
    every = plan.geometry.layers
    for tokens in plan.lengths:
        found = blocks.opaque(tokens) if tokens == 1 else attention.opaque(tokens)
        if len(found) < every:
            msg = (
                f"cache {plan.cache.label}: in steps of {tokens} tokens our kernels compute the "
                f"attention of {len(found)} of {every} blocks on {plan.target.name}, and nothing "
                f"else reads such a cache (docs/kernels-cpu.md says which blocks they take). "
                f"Leave `compress.cache` out, or evaluate it with the torch engine."
            )
            raise UnsupportedError(msg)
