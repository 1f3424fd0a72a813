"""`trinity::packed_block`: a whole decoder block at one token."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinity.lowering.graph.annotate import annotated_call
from trinity.lowering.graph.operators.llama_blocks import FAMILIES, heads_of
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_parts import BLOCK, LINEARS, NORMS, Arrays, BlockFormat
from trinity.lowering.mlir.builder import tensor_type
from trinity.lowering.mlir.calls import PackedCall, Signature, Site
from trinity.lowering.plan import Lowering
from trinity.lowering.targets.choose import storage_of

torch.library.define(
    f"trinity::{BLOCK}",
    "(Tensor hidden, Tensor cos, Tensor sin, Tensor position, Tensor keys, Tensor values, "
    "str block) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake(f"trinity::{BLOCK}")  # type: ignore[untyped-decorator]  # torch's
def _packed_block_shape(
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    block: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(keys), torch.empty_like(values)


class PackedBlock(nn.Module):
    """A decoder block at one token, for export only: it calls `trinity::packed_block`."""

    def __init__(self, name: str) -> None:
        """name: of the block"""
        super().__init__()
        self.name = name

    def forward(
        self,
        hidden_states: Tensor,
        *,
        past_key_values: Any,  # an `ArgumentCache`
        position_embeddings: tuple[Tensor, Tensor],
        **_unused: object,
    ) -> Tensor:
        """hidden_states: [1, 1, hidden] -> the same shape; the caches are written in place."""
        keys, values = past_key_values.of(int(self.name.rpartition(".")[2]))
        found: Tensor
        found, new_keys, new_values = torch.ops.trinity.packed_block(
            hidden_states, *position_embeddings, past_key_values.positions, keys, values, self.name
        )
        keys.copy_(new_keys)
        values.copy_(new_values)
        return found


class BlockOperator(Operator):
    """Decoder blocks at one token, where a kernel of ours computes them."""

    signature = Signature(BLOCK, site=-1, rows=1, prefix="block_", parameter=NORMS[0])

    def __init__(self, plan: Lowering) -> None:
        """plan: which says which blocks"""
        self.target, self.kernel = plan.target, plan.fused(BLOCK)
        self.formats = block_formats(plan, tokens=1)

    def stand_ins(self, model: nn.Module, tokens: int) -> Mapping[str, nn.Module]:
        """See `Operator`."""
        return {name: PackedBlock(name) for name in self.formats} if tokens == 1 else {}

    def opaque(self, tokens: int) -> list[str]:
        """See `Operator`."""
        return sorted(self.formats) if tokens == 1 else []

    def annotated(self, site: Site) -> PackedCall:
        """See `Operator`."""
        block = self.formats[site.name]
        operands = [
            (f"{site.name}.{key}", tensor_type(*of))
            for key, of in self._parameters(block).items()
            if key.endswith((".bias", "layernorm.weight"))
        ]
        for key in LINEARS:
            operands += annotated_call(f"{site.name}.{key}", block.linears[key], rows=1).operands
        return _call(block, operands)

    def stored(self, site: Site) -> PackedCall:
        """See `Operator`."""
        block = self.formats[site.name]
        parameters = self._parameters(block)
        operands = [(f"{site.name}.{key}", tensor_type(*of)) for key, of in parameters.items()]
        return _call(block, operands)

    def code(self, site: Site) -> KernelCode | None:
        """See `Operator`."""
        return self.kernel.code(self.formats[site.name]) if self.kernel else None

    def _parameters(self, block: BlockFormat) -> Arrays:
        return block.parameters(lambda weight_format: storage_of(weight_format, self.target))


def block_formats(plan: Lowering, tokens: int) -> dict[str, BlockFormat]:
    """Blocks that a kernel of ours takes whole in a step of so many tokens, by name."""
    config, kernel = plan.config, plan.fused(BLOCK)
    plain = not getattr(config, "attention_bias", False) and not getattr(config, "mlp_bias", False)
    if kernel is None or tokens * plan.batch != 1:
        return {}
    if config.model_type not in FAMILIES or not plain or config.hidden_act != "silu":
        return {}
    found = {}
    for name, heads in heads_of(plan, tokens).items():
        linears = {key: plan.formats.get(f"{name}.{key}") for key in LINEARS}
        if None in linears.values():
            continue
        block = BlockFormat(
            config.hidden_size,
            heads,
            config.rms_norm_eps,
            {key: of for key, of in linears.items() if of},
            tuple(f"self_attn.{bias}" for bias in FAMILIES[config.model_type]),
        )
        if kernel.refusal(block) is None:
            found[name] = block
    return found


def _call(block: BlockFormat, operands: Sequence[tuple[str, str]]) -> PackedCall:
    """Declared only: the body is a kernel of ours."""
    inputs = {key: tensor_type(*of) for key, of in block.activations().items()}
    results = tuple(inputs[key] for key in ("hidden", "keys", "values"))
    return PackedCall(block.function, None, tuple(inputs.values()), results, tuple(operands))
