"""A model whose weights stay on disk until a block is asked for."""

import contextlib
import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from trinity.harness.models import families, folding, rotating
from trinity.harness.models.folding import Factor
from trinity.harness.models.model_config import adapted, quantized, read_config, unusable
from trinity.harness.models.model_files import Entry, WeightReader
from trinity.lowering.graph import attention
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.transforms import Fold

LINEARS = (nn.Linear, Conv1D)
# Types of numbers, as safetensors calls them; 8 bits and fewer are codes with scales beside them.
FLOATS = ("F64", "F32", "F16", "BF16")


# Buffers that older versions of transformers wrote into files.
MADE_BY_MODELS = (r"rotary_emb\.inv_freq$", r"attn\.(masked_)?bias$", r"attention\.(masked_)?bias$")


class Decoder:
    """A Hugging Face decoder whose weights stay on disk until a block is asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        """folder: config.json and safetensors in Hugging Face's layout."""
        self.folder, self.dtype, self.device = folder, dtype, device
        config = read_config(folder)
        self.family = families.get(config.model_type)
        self.reader = WeightReader(folder, getattr(config, "transformers_weights", None))
        # Tensors of the model that are not in the files, because a checkpoint source makes them.
        self.provided: frozenset[str] = frozenset()
        self.model = skeleton(config, dtype)
        if self._has_head_of_its_own():
            config.tie_word_embeddings = False
            self.model = skeleton(config, dtype)
        self.blocks = self._blocks(config.model_type)
        # What tensors of blocks are multiplied by as they are read.
        self._factors: dict[str, list[Factor]] = {}
        self._turns: dict[str, rotating.Change] = {}  # before any factor

    def _blocks(self, model_type: str) -> nn.ModuleList:
        """The list of blocks, after a look at whether the family's row is about them."""
        try:
            blocks: nn.ModuleList = self.model.get_submodule(self.family.blocks)
        except AttributeError:
            families.check_blocks(model_type, None)
            raise
        linears = {
            f"{self.family.blocks}.{index}": [
                name for name, part in block.named_modules() if isinstance(part, LINEARS)
            ]
            for index, block in enumerate(blocks)
        }
        families.check_blocks(model_type, linears)
        return blocks

    @cached_property
    def stored(self) -> dict[str, str]:
        """Name in the model -> name in the files (some hub files leave out the base model's
        prefix), of what the files have.
        """
        prefix = f"{self.model.base_model_prefix}."
        renamed = dict(self.family.renamed)
        names = {}
        for name in self.model.state_dict():
            candidates = (name, name.removeprefix(prefix), renamed.get(name, name))
            stored = next((found for found in candidates if found in self.reader), None)
            if stored is not None:
                names[name] = stored
        return names

    @cached_property
    def tensor_names(self) -> dict[str, str]:
        """Name in the model -> name in the files; ConfigError if they are not the model's weights.

        What a checkpoint source provides may be anything in the files, or nothing.
        """
        if not self.provided:
            self._refuse_other_weights()
        tied = self.model.all_tied_weights_keys
        partners = {**tied, **{source: target for target, source in tied.items()}}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in self.provided:
                continue
            if name in self.stored:
                self._check_entry(name, self.reader.entries[self.stored[name]], parameter)
            elif partners.get(name) not in self.stored.keys() | self.provided:
                raise ConfigError(self._without(name))
        return self.stored

    def check_weights(self) -> None:
        """ConfigError if the files do not hold the model's weights; reads their headers only."""
        _ = self.tensor_names

    def _refuse_other_weights(self) -> None:
        if reason := quantized(self.folder, self.model.config) or adapted(self.folder):
            raise UnsupportedError(reason)

    def _check_entry(self, name: str, entry: Entry, parameter: Tensor) -> None:
        """Refuse codes of numbers, and a weight of another shape than the configuration's."""
        if entry.dtype not in FLOATS:
            msg = (
                f"model {self.folder}: tensor '{self.stored[name]}' is stored as {entry.dtype}: "
                f"codes of numbers rather than numbers. Take the model before it was quantized."
            )
            raise UnsupportedError(msg)
        if entry.shape != tuple(parameter.shape):
            table = self.model.get_input_embeddings().weight.shape[0]
            hint = (
                f" If its vocabulary is padded, set vocab_size to {entry.shape[0]} there."
                if parameter.shape[0] == table and entry.shape[1:] == tuple(parameter.shape[1:])
                else ""
            )
            msg = (
                f"model {self.folder}: tensor '{self.stored[name]}' is {list(entry.shape)}, and "
                f"its config.json makes it {list(parameter.shape)}.{hint}"
            )
            raise ConfigError(msg)

    def _without(self, name: str) -> str:
        """What to say of a model whose files lack a weight."""
        hint = ""
        if name in (self.model._tied_weights_keys or ()):
            hint = " Its config.json does not tie head and embedding (`tie_word_embeddings`)."
        if f"{name.removesuffix('.weight')}.qweight" in self.reader:
            hint = " It has 'qweight' in its place: a quantized checkpoint (GPTQ, AWQ)."
        if not self.stored and self.reader.places:
            hint = f" Its tensors are called like '{next(iter(self.reader.places))}'."
        return f"model {self.folder}: its safetensors have no tensor '{name}'.{hint}"

    def unused(self) -> list[str]:
        """Tensors of the files that are no part of the model, but buffers that it makes itself."""
        known = (*(self.model._keys_to_ignore_on_load_unexpected or ()), *MADE_BY_MODELS)
        left = sorted(self.reader.places.keys() - set(self.tensor_names.values()))
        return [name for name in left if not any(re.search(of, name) for of in known)]

    def _has_head_of_its_own(self) -> bool:
        """Whether the files hold two tensors that differ where the configuration ties them.

        transformers believes the files then, and so does everyone who compares with it.
        """
        pairs = [
            [self.stored[name] for name in pair]
            for pair in self.model.all_tied_weights_keys.items()
            if self.stored.keys() >= set(pair)
        ]
        # Codes cannot be compared as numbers: `_check_entry` refuses them.
        return any(
            not torch.equal(*map(self._tensor, pair))
            for pair in pairs
            if all(self.reader.entries[name].dtype in FLOATS for name in pair)
        )

    def folds(self, index: int) -> tuple[Fold, ...]:
        """Linears of a block whose inputs may be scaled, and where the inverse goes."""
        return folding.folds(self.model, self.family, index)

    def fold(self, index: int, scales: Sequence[Mapping[Fold, Tensor]]) -> None:
        """From now on, read a block with these scales in it, one set after the other.

        The block is another one with the same outputs.  scales: [in] each; of `folds(index)`
        """
        prefix = f"{self.family.blocks}.{index}."
        others = {name: of for name, of in self._factors.items() if not name.startswith(prefix)}
        self._factors = others
        for some in scales:
            for name, factor in folding.factors(self.model, self.family, some):
                self._factors.setdefault(name, []).append(factor)

    def rotate(self, rotation: rotating.Rotation) -> None:
        """From now on, read a model with the same logits whose residual stream is turned, x Q for
        x, and inputs of some linears, as it runs.  Its head has the last norm's scale, and so is
        not tied to the embedding.
        """
        tied = self.model.all_tied_weights_keys
        if tied:
            self.model.config.tie_word_embeddings = False
            self.model = skeleton(self.model.config, self.dtype)
            self.blocks = self._blocks(self.model.config.model_type)
            for pair in tied.items():
                found = next(self.stored[name] for name in pair if name in self.stored)
                self.stored.update(dict.fromkeys(pair, found))
        self._turns = rotating.turn(self.model, self.family, rotation, self._as_stored)

    def layer_names(self, index: int) -> list[str]:
        """Full names of a block's linears."""
        return [
            f"{self.family.blocks}.{index}.{name}" for group in self.family.groups for name in group
        ]

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear of every block; needs no weights."""
        return {
            name: linear_shape(self.model.get_submodule(name))
            for index in range(len(self.blocks))
            for name in self.layer_names(index)
        }

    def load(self, module_path: str) -> None:
        """Read the weights of one submodule."""
        module = self.model.get_submodule(module_path)
        prefix = f"{module_path}."
        state = {
            name.removeprefix(prefix): self._changed(name, stored)
            for name, stored in self.tensor_names.items()
            if name.startswith(prefix)
        }
        absent = {name.removeprefix(prefix) for name in self.provided - self.tensor_names.keys()}
        made = {name for name, _ in module.named_buffers()}  # by the model, where no file has them
        missing, _ = module.load_state_dict(state, assign=True, strict=False)
        assert set(missing) <= absent | made, missing  # `tensor_names` has refused other gaps

    def unload(self, module_path: str) -> None:
        """Forget the weights of one submodule; buffers, which no file has, are kept."""
        for module in self.model.get_submodule(module_path).modules():
            _forget(module)

    def unload_outside_blocks(self) -> None:
        """Forget embeddings, norms and head."""
        prefix = f"{self.family.blocks}."
        for name, module in self.model.named_modules():
            if not name.startswith(prefix):
                _forget(module)

    def load_outside_blocks(self) -> None:
        """Read embeddings, norms and head: all that is not in a block."""
        prefix = f"{self.family.blocks}."
        state = {
            name: self._changed(name, stored)
            for name, stored in self.tensor_names.items()
            if not name.startswith(prefix)
        }
        self.model.load_state_dict(state, assign=True, strict=False)
        tie(self.model, self.stored.keys())

    def uncompressed(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all that is no linear weight of a block, tied weights once."""
        tied = self.model.all_tied_weights_keys
        again = {target for target, source in tied.items() if source in self.stored}
        left_out = again | {f"{name}.weight" for name in self.layer_shapes()}
        for name, stored in self.tensor_names.items():
            if name not in left_out:
                yield name, self._changed(name, stored)

    def _changed(self, name: str, stored: str) -> Tensor:
        """A tensor with the rotation and the scales that were moved into it."""
        tensor = self._tensor(stored)
        if name in self._turns:
            tensor = self._turns[name](tensor)
        for factor in self._factors.get(name, ()):
            tensor = factor(tensor)
        return tensor

    def _as_stored(self, name: str) -> Tensor:
        """A tensor of the model as the files have it."""
        return self._tensor(self.stored[name])

    def _tensor(self, stored: str) -> Tensor:
        where = f"model {self.folder}: tensor '{stored}'"
        tensor = self.reader.read(stored).to(device=self.device)
        if not tensor.is_floating_point():
            return tensor
        return cast(where, tensor, self.dtype)


def _forget(module: nn.Module) -> None:
    """Put a module's own parameters on `meta`."""
    for name, parameter in module.named_parameters(recurse=False):
        bare = nn.Parameter(parameter.to("meta"), requires_grad=False)
        module.register_parameter(name, bare)


DAMAGED = "The file is damaged or was saved in a type too small for it; get the model again."


def cast(where: str, tensor: Tensor, dtype: torch.dtype, otherwise: str = DAMAGED) -> Tensor:
    """A tensor in the type that a run computes in; ConfigError if it is not finite then.

    where: 'model X: tensor Y', for the message   otherwise: what to do if it never was finite
    """
    made = tensor.to(dtype)
    if bool(torch.isfinite(made).all()):
        return made
    if bool(torch.isfinite(tensor).all()):
        name = str(dtype).removeprefix("torch.")
        msg = (
            f"{where} reaches {float(tensor.abs().max()):.3g}, which {name} cannot hold. "
            f"{wider(dtype, 'No model is computed in a wider type here.')}"
        )
        raise ConfigError(msg)
    msg = f"{where} holds NaN or infinity. {otherwise}"
    raise ConfigError(msg)


def wider(dtype: torch.dtype, otherwise: str) -> str:
    """What to do where a type cannot hold a number.  otherwise: where none holds more"""
    types = {torch.float16: "bfloat16` or `--dtype float32", torch.bfloat16: "float32"}
    if dtype not in types:
        return otherwise
    return f"Use `--dtype {types[dtype]}` (`model.dtype` in a recipe)."


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The model without weights: parameters on `meta`, buffers (rotary frequencies) real.

    dtype: of the parameters; buffers stay float32, as transformers loads them
    """
    # A copy: transformers writes the type into the configuration it is given.
    config = copy.deepcopy(config)
    with init_empty_weights(include_buffers=False), warnings_off():
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        except Exception as error:
            # Whatever a model class does with values that it did not expect.
            raise ConfigError(unusable(Path(config.name_or_path), error)) from error
    _fill_buffers(model)
    # Making parameters on `meta` undoes the tie of embedding and head.
    model.tie_weights()
    return model


@torch.no_grad()
def _fill_buffers(model: Any) -> None:
    """Compute what no file holds in float32 and cast it, as transformers does when it loads: under
    a narrow type, GPT-J's positions would be computed in that type.
    """
    for module in model.modules():
        if module._non_persistent_buffers_set:
            model._init_weights(module)


def tie(model: Any, present: Collection[str]) -> None:
    """Tie head and embedding by transformers' rule: only where the configuration says so, and one
    of them is absent or they are equal.

    present: names of the tensors that were loaded
    """
    model.tie_weights(set(model.state_dict()) - set(present), recompute_mapping=False)


def group_attention(model: Any) -> None:
    """Give a model that will be compiled the form of attention that compiles well."""
    AttentionInterface.register(attention.NAME, attention.grouped_attention)
    model.set_attn_implementation(attention.NAME)


@contextlib.contextmanager
def warnings_off() -> Iterator[None]:
    """Silence transformers' advice about initialisation: these weights are read later."""
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear or of GPT-2's transposed linear."""
    rows, columns = matrix_of(module).shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def matrix_of(module: nn.Module) -> Tensor:
    """A linear's weight parameter, in the linear's own orientation."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def weight_of(module: nn.Module) -> Tensor:
    """A linear's weight as float32 [out, in]; a view where it already is that."""
    return oriented(module, matrix_of(module).detach()).contiguous().float()


def set_weight(module: nn.Module, weight: Tensor, dtype: torch.dtype) -> None:
    """Put [out, in] into a linear, in the linear's own orientation and the given type."""
    own = oriented(module, weight).contiguous()
    module.weight = nn.Parameter(own.to(dtype), requires_grad=False)


def oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """[out, in] to a linear's own orientation, or back: GPT-2's Conv1D keeps [in, out]."""
    return weight.t() if isinstance(module, Conv1D) else weight
