"""Every opaque operator that a step may call."""

from trinity.lowering.graph.operators.attention import AttentionOperator
from trinity.lowering.graph.operators.block import BlockOperator
from trinity.lowering.graph.operators.linear import LinearOperator
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.plan import Lowering


def operators_of(plan: Lowering) -> tuple[Operator, ...]:
    """In the order in which their modules take others' places: what holds linears comes later."""
    return (LinearOperator(plan), AttentionOperator(plan), BlockOperator(plan))
