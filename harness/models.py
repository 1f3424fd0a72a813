"""Models as data: where a family's blocks and linears are, and how weights are read by block."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from trinity.lowering import attention
from trinity.methods.errors import ConfigError, UnsupportedError, nearest

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its transformer blocks, and which of their linears share an input.

    blocks: dotted path of the list of blocks   groups: linears of a block, in order of execution
    renamed: tensors that files call by another name than the model does
    """

    blocks: str
    groups: tuple[tuple[str, ...], ...]
    renamed: tuple[tuple[str, str], ...] = ()


_LLAMA = Family(
    "model.layers",
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "opt": Family(
        "model.decoder.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
    ),
    "gpt2": Family(
        "transformer.h", (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",))
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        (
            ("attention.query_key_value",),
            ("attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
        renamed=(("lm_head.weight", "embed_out.weight"),),
    ),
}


class WeightReader:
    """Tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """folder: holds *.safetensors; a pickle checkpoint is refused."""
        self.files = sorted(folder.glob("*.safetensors"))
        if not self.files:
            pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(
                p.name for p in folder.glob("*.pt")
            )
            found = (
                f"only {pickles[0]}, a pickle, which can run code when it is read and is refused"
                if pickles
                else "none"
            )
            msg = (
                f"model {folder}: expected *.safetensors, found {found}. Save the model with "
                f"`save_pretrained(..., safe_serialization=True)` or take a revision that has them."
            )
            raise ConfigError(msg)

    @cached_property
    def places(self) -> dict[str, Path]:
        """Tensor name -> file."""
        places = {}
        for path in self.files:
            with safe_open(path, framework="pt") as stream:
                places.update(dict.fromkeys(stream.keys(), path))
        return places

    def read(self, name: str) -> Tensor:
        """One tensor, as stored."""
        with safe_open(self.places[name], framework="pt") as stream:
            tensor: Tensor = stream.get_tensor(name)
            return tensor

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""
        return name in self.places


class Decoder:
    """A Hugging Face decoder whose weights stay on disk until a block is asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        """folder: config.json and safetensors in Hugging Face's layout."""
        self.folder, self.dtype, self.device = folder, dtype, device
        config = read_config(folder)
        self.family = FAMILIES[config.model_type]
        self.reader = WeightReader(folder)
        # Tensors of the model that are not in the files, because a checkpoint source makes them.
        self.provided: frozenset[str] = frozenset()
        self.model = skeleton(config, dtype)
        self.blocks: nn.ModuleList = self.model.get_submodule(self.family.blocks)

    @cached_property
    def tensor_names(self) -> dict[str, str]:
        """Name in the model -> name in the files (some hub files leave out the base model's
        prefix).
        """
        prefix = f"{self.model.base_model_prefix}."
        renamed = dict(self.family.renamed)
        tied = self.model._tied_weights_keys if self.model.config.tie_word_embeddings else ()
        names = {}
        for name in self.model.state_dict():
            candidates = (name, name.removeprefix(prefix), renamed.get(name, name))
            stored = next((found for found in candidates if found in self.reader), None)
            if stored is not None:
                names[name] = stored
            elif name not in tied and name not in self.provided:
                msg = f"model {self.folder}: its safetensors have no tensor '{name}'."
                raise ConfigError(msg)
        return names

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
            name.removeprefix(prefix): self._tensor(stored)
            for name, stored in self.tensor_names.items()
            if name.startswith(prefix)
        }
        absent = {name.removeprefix(prefix) for name in self.provided - self.tensor_names.keys()}
        missing, _ = module.load_state_dict(state, assign=True, strict=not absent)
        assert set(missing) <= absent, missing  # `tensor_names` has refused other gaps

    def unload(self, module_path: str) -> None:
        """Forget the weights of one submodule."""
        self.model.get_submodule(module_path).to("meta")

    def load_outside_blocks(self) -> None:
        """Read embeddings, norms and head: all that is not in a block."""
        prefix = f"{self.family.blocks}."
        state = {
            name: self._tensor(stored)
            for name, stored in self.tensor_names.items()
            if not name.startswith(prefix)
        }
        self.model.load_state_dict(state, assign=True, strict=False)
        self.model.tie_weights()

    def uncompressed(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all that is no linear weight of a block, tied weights once."""
        linears = {f"{name}.weight" for name in self.layer_shapes()}
        for name, stored in self.tensor_names.items():
            if name not in linears:
                yield name, self._tensor(stored)

    def _tensor(self, stored: str) -> Tensor:
        tensor = self.reader.read(stored)
        if not bool(torch.isfinite(tensor).all()):
            msg = (
                f"model {self.folder}: tensor '{stored}' holds NaN or infinity. The file is "
                f"damaged or was saved in a type too small for it; get the model again."
            )
            raise ConfigError(msg)
        return tensor.to(device=self.device, dtype=self.dtype)


def read_config(folder: Path) -> Any:
    """The model's configuration (transformers has no common type for it); refuses unknown kinds
    early.
    """
    if not (folder / "config.json").is_file():
        msg = f"model {folder}: there is no config.json. Expected a Hugging Face model folder."
        raise ConfigError(msg)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES:
        msg = (
            f"model {folder}: model type '{config.model_type}' is not supported."
            f"{nearest(config.model_type, list(FAMILIES))} "
            f"Supported: {', '.join(sorted(FAMILIES))}."
        )
        raise UnsupportedError(msg)
    return config


def dtype_name(config: Any) -> str:
    """'float32': the type of a model's parameters, as its configuration says."""
    return str(config.dtype).removeprefix("torch.")


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The model without weights: parameters on `meta`, buffers (rotary frequencies) real.

    dtype: of the parameters; buffers stay float32, as transformers loads them
    """
    with init_empty_weights(include_buffers=False), warnings_off():
        # A copy: transformers writes the type into the configuration it is given.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()
    # Making parameters on `meta` undoes the tie of embedding and head.
    model.tie_weights()
    return model


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
