"""`trinity::packed_attention`: a block's attention over many tokens, between its linears."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from trinity.lowering.graph.operators.llama_blocks import FAMILIES, heads_of
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_parts import ATTENTION, AttentionFormat
from trinity.lowering.mlir.builder import tensor_type
from trinity.lowering.mlir.calls import PackedCall, Signature, Site
from trinity.lowering.plan import Lowering

torch.library.define(
    f"trinity::{ATTENTION}",
    "(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor position, Tensor keys, "
    "Tensor values, str block) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake(f"trinity::{ATTENTION}")  # type: ignore[untyped-decorator]  # torch's
def _packed_attention_shape(q: Tensor, *others: Tensor | str) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = others[-3:-1]
    assert isinstance(keys, Tensor)
    assert isinstance(values, Tensor)
    return torch.empty_like(q), torch.empty_like(keys), torch.empty_like(values)


class PackedAttention(nn.Module):
    """A block's attention over many tokens, for export only.

    It calls `trinity::packed_attention` between the linears.
    """

    def __init__(self, original: nn.Module, name: str) -> None:
        """original: whose linears stay   name: of the block"""
        super().__init__()
        for linear in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, linear, original.get_submodule(linear))
        self.name = name

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Any,  # an `ArgumentCache`
        **_unused: object,
    ) -> tuple[Tensor, None]:
        """hidden_states: [1, T, hidden] -> the same shape; the caches are written in place."""
        q, k, v = (
            self.get_submodule(name)(hidden_states) for name in ("q_proj", "k_proj", "v_proj")
        )
        keys, values = past_key_values.of(int(self.name.rpartition(".")[2]))
        found, new_keys, new_values = torch.ops.trinity.packed_attention(
            q, k, v, *position_embeddings, past_key_values.positions, keys, values, self.name
        )
        keys.copy_(new_keys)
        values.copy_(new_values)
        return self.get_submodule("o_proj")(found), None


class AttentionOperator(Operator):
    """Attention of many tokens, where a kernel of ours computes it."""

    signature = Signature(ATTENTION, site=-1, rows=1, prefix="attention_", parameter=None)

    def __init__(self, plan: Lowering) -> None:
        """plan: which says of which blocks"""
        self.kernel = plan.fused(ATTENTION)
        self.formats = cache(lambda tokens: attention_formats(plan, tokens))

    def stand_ins(self, model: nn.Module, tokens: int) -> Mapping[str, nn.Module]:
        """See `Operator`."""
        places = {name: f"{name}.self_attn" for name in self.formats(tokens)}
        return {
            place: PackedAttention(model.get_submodule(place), name)
            for name, place in places.items()
        }

    def opaque(self, tokens: int) -> list[str]:
        """See `Operator`."""
        return sorted(self.formats(tokens))

    def annotated(self, site: Site) -> PackedCall:
        """See `Operator`."""
        attention = self.formats(site.rows)[site.name]
        inputs = {key: tensor_type(*of) for key, of in attention.activations().items()}
        results = tuple(inputs[key] for key in ("q", "keys", "values"))
        return PackedCall(attention.function, None, tuple(inputs.values()), results, ())

    def stored(self, site: Site) -> PackedCall:
        """The same: it has no weights."""
        return self.annotated(site)

    def code(self, site: Site) -> KernelCode | None:
        """See `Operator`."""
        return self.kernel.code(self.formats(site.rows)[site.name]) if self.kernel else None


def attention_formats(plan: Lowering, tokens: int) -> dict[str, AttentionFormat]:
    """Blocks whose attention is a kernel of ours in a step of so many tokens, by name."""
    kernel = plan.fused(ATTENTION)
    if kernel is None or plan.config.model_type not in FAMILIES or plan.batch != 1 or tokens == 1:
        return {}
    found = {name: AttentionFormat(heads, tokens) for name, heads in heads_of(plan, tokens).items()}
    return {name: of for name, of in found.items() if kernel.refusal(of) is None}
