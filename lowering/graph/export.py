"""From a Hugging Face decoder to steps in the torch dialect, its compressed linears opaque.

A step takes token ids, their positions and the key/value caches, writes the caches in place, and
gives logits; one of many tokens is split before the head.  The number of tokens and the length of
the caches are fixed; what a position may attend to is an explicit mask, so one step serves prefill
in chunks and decoding alike.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trinity.lowering import names
from trinity.lowering.geometry import Geometry, StepShape
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.graph.stand_ins import replaced, stored_tables
from trinity.lowering.plan import Lowering
from trinity.methods.errors import LoweringError


class ArgumentCache:
    """The least that transformers asks of a cache.

    Keys and values are the caller's, and are written in place.
    """

    is_compileable = True

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor) -> None:
        """keys, values: one [batch, heads, cache_length, head_dim] a block; positions: [T]."""
        self.keys, self.values, self.positions = keys, values, positions
        self.is_sliding = [False] * len(keys)

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions of one block; the whole cache comes back."""
        self.keys[layer].index_copy_(2, self.positions, key)
        self.values[layer].index_copy_(2, self.positions, value)
        return self.keys[layer], self.values[layer]

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one block, to be written by whoever asks."""
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, _layer: int = 0) -> int:
        """Nothing is asked of the length: positions and mask are explicit."""
        return 0

    def get_mask_sizes(self, _query_length: int, _layer: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self.keys[0].shape[2], 0

    def get_max_cache_shape(self, *_args: object) -> int:
        """Length of the caches."""
        return self.keys[0].shape[2]

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.keys)


class Step(nn.Module):
    """`step(ids [batch, T], positions [T], *keys, *values) -> logits [batch, T, vocab]`, float32.

    All sequences stand at the same positions, so one mask serves them all.
    """

    def __init__(self, model: nn.Module, geometry: Geometry, shape: StepShape) -> None:
        """model: a Hugging Face decoder with a language-model head, in eval mode."""
        super().__init__()
        self.model, self.geometry, self.shape = model, geometry, shape

    def forward(self, ids: Tensor, positions: Tensor, *caches: Tensor) -> Tensor:
        """One step; positions past `max_length` are padding, and only they may be."""
        logits: Tensor = self.model(**self.inputs(ids, positions, caches)).logits.float()
        return logits

    def inputs(
        self, ids: Tensor, positions: Tensor, caches: Sequence[Tensor]
    ) -> dict[str, Any]:  # Any: as many types as transformers has arguments
        """What the model is called with."""
        keys, values = caches[: self.geometry.layers], caches[self.geometry.layers :]
        # Padding has room in the caches, but may be past the end of a learned position table.
        known = positions.clamp(max=self.shape.max_length - 1)
        return {
            "input_ids": ids,
            "position_ids": known[None],
            "attention_mask": self.masks(positions, keys[0].dtype),
            "past_key_values": ArgumentCache(keys, values, positions),
            "use_cache": True,
        }

    def masks(self, positions: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What each position attends to, as a number to add.  -> [1, 1, T, cache_length]"""
        places = torch.arange(self.shape.cache_length, device=positions.device)[None, :]
        distance = positions[:, None] - places
        seen = distance >= 0
        near = seen if self.geometry.window is None else seen & (distance < self.geometry.window)
        zero = torch.zeros((), dtype=dtype, device=positions.device)
        full, sliding = (
            torch.where(mask, zero, torch.finfo(dtype).min)[None, None] for mask in (seen, near)
        )
        if self.geometry.layer_types is not None:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding


class Trunk(Step):
    """A step without its head: `(ids, positions, *caches) -> hidden [batch, T, width]`."""

    def forward(self, ids: Tensor, positions: Tensor, *caches: Tensor) -> Tensor:
        """See `Step`."""
        decoder = self.model.get_decoder()  # type: ignore[operator]  # transformers' method
        hidden: Tensor = decoder(**self.inputs(ids, positions, caches)).last_hidden_state
        return hidden


class Head(nn.Module):
    """What a model does after its trunk: `hidden [batch, T, width] -> logits [batch, T, vocab]`."""

    def __init__(self, model: nn.Module) -> None:
        """model: a Hugging Face decoder with a language-model head, in eval mode."""
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor) -> Tensor:
        """Float32 logits."""
        with _trunk_that_gives(hidden, self.model):
            logits: Tensor = self.model(input_ids=None, use_cache=False).logits.float()
        return logits


class LastHead(Head):
    """`(hidden [batch, T, width], index [1]) -> logits of that position, [batch, 1, vocab]`."""

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        """Float32 logits."""
        return super().forward(hidden.index_select(1, index))


class _Given(nn.Module):
    """A trunk that computes nothing."""

    def __init__(self, output: "_TrunkOutput") -> None:
        super().__init__()
        self.output = output

    def forward(self, *_arguments: object, **_options: object) -> "_TrunkOutput":
        return self.output


@dataclass(frozen=True, eq=False)
class _TrunkOutput:
    """The least that heads of transformers ask of a trunk's output."""

    last_hidden_state: Tensor
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    cross_attentions: None = None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


@contextmanager
def _trunk_that_gives(hidden: Tensor, model: nn.Module) -> Iterator[None]:
    trunk = model.get_decoder()  # type: ignore[operator]  # transformers' method
    name = next(name for name, module in model.named_modules() if module is trunk)
    with replaced(model, {name: _Given(_TrunkOutput(hidden))}):
        yield


def export_functions(
    model: nn.Module, plan: Lowering, tokens: int, operators: Sequence[Operator]
) -> list[str]:
    """Stage torch of the functions for steps of a length: parameters external, operators opaque.

    One token: the whole step.  More: its trunk, the head for every position, and the head for one,
    because a prompt's logits are wanted of its last position only.
    The numbers in `model` are not read: it may be on `meta`.
    """
    geometry, shape = plan.geometry, plan.shape(tokens)
    first = first_names(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        # Traced on meta, tensors made on the way would be of a device that no compiler knows. Empty
        # memory costs nothing until it is written.
        model = copy.deepcopy(model).to_empty(device="cpu")
    device = next(model.parameters()).device
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    ids = torch.zeros(shape.batch, shape.tokens, dtype=torch.int64, device=device)
    positions = torch.arange(shape.tokens, device=device)
    count = 2 * geometry.layers
    caches = [torch.zeros(plan.caches, dtype=dtype, device=device) for _ in range(count)]
    step = (ids, positions, *caches)
    with ExitStack() as stack:
        for operator in operators:
            stack.enter_context(replaced(model, operator.stand_ins(model, tokens)))
        stack.enter_context(replaced(model, stored_tables(model, plan.tables)))
        stack.enter_context(_evaluating(model))
        stack.enter_context(torch.no_grad())
        if shape.tokens == 1:
            return [_text(_exported(Step(model, geometry, shape), step), names.STEP, first)]
        trunk = _exported(Trunk(model, geometry, shape), step)
        hidden = torch.zeros(_output_shape(trunk), dtype=dtype, device=device)
        found = {
            names.trunk: trunk,
            names.head: _exported(Head(model), (hidden,)),
            names.last_head: _exported(LastHead(model), (hidden, positions[:1])),
        }
        return [_text(program, name(shape.tokens), first) for name, program in found.items()]


def _exported(module: nn.Module, arguments: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, arguments, strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        shape = list(arguments[0].shape)
        kind = type(module.model).__name__
        msg = f"{kind}: torch.export cannot trace its {type(module).__name__} of {shape}: {error}"
        raise LoweringError(msg) from error


def _output_shape(program: torch.export.ExportedProgram) -> torch.Size:
    """Of its only result."""
    (name,) = program.graph_signature.user_outputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    shape: torch.Size = node.meta["val"].shape
    return shape


def _text(program: torch.export.ExportedProgram, name: str, first: Mapping[str, str]) -> str:
    # Imported here: it loads torch-mlir, which a model that is lowered already does without.
    from trinity.lowering.mlir.dialects import import_program

    return import_program(
        program,
        name,
        lambda target: first.get(target.removeprefix("model."), target.removeprefix("model.")),
    )


def first_names(model: nn.Module) -> dict[str, str]:
    """The one name under which a tensor with several names (a tied weight) is stored."""
    seen: dict[int, str] = {}
    return {
        name: seen.setdefault(id(tensor), name)
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
