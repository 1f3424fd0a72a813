"""Model, formats and target in; every stage and one compiled module out."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from trinity.lowering.annotate import annotated_call, storage_call
from trinity.lowering.blocks import (
    annotated_block,
    attention_call,
    attention_formats,
    block_formats,
    packed_blocks,
    storage_block,
)
from trinity.lowering.compile import COMMON_FLAGS, compile_text, compiler_versions, target_text
from trinity.lowering.dialects import (
    PackedCall,
    call_packed,
    global_names,
    merged,
    substitute_packed,
)
from trinity.lowering.export import Geometry, StepShape, export_functions
from trinity.lowering.kernels.block import BlockFormat, block_kernels
from trinity.lowering.kernels.choose import host_flavour, kernels_of, storage_of
from trinity.lowering.kernels.flash import AttentionFormat, attention_kernels
from trinity.lowering.kernels.linear import with_kernels
from trinity.lowering.kernels.terms import Flavour
from trinity.lowering.packed import table_tensors
from trinity.lowering.storage import Layout
from trinity.lowering.targets import Target
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Quantized, WeightFormat, format_of

DECODE_AND_PREFILL = (1, 128)


@dataclass(frozen=True)
class Lowering:
    """All that a module depends on.

    config: the model's configuration (Hugging Face's, whole)
    formats: of every compressed linear, by name   lengths: tokens of a step, 1 among them
    max_length: longest sequence; None for the model's own limit   dtype: of the model's parameters
    batch: sequences of a step, all at the same position
    heads, tables: formats of a head and an embedding that are stored narrower than the model has
        them, by name
    """

    config: Any  # transformers' PretrainedConfig, which lowering must not import
    formats: Mapping[str, WeightFormat]
    target: Target
    lengths: tuple[int, ...] = DECODE_AND_PREFILL
    max_length: int | None = None
    dtype: str = "float32"
    batch: int = 1
    heads: Mapping[str, WeightFormat] = field(default_factory=dict)
    tables: Mapping[str, WeightFormat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse sizes that make no engine, before anything is exported."""
        limit = Geometry.of(self.config).max_positions
        if self.batch < 1:
            msg = f"batch {self.batch}: a step takes at least 1 sequence."
            raise ConfigError(msg)
        if 1 not in self.lengths or min(self.lengths) < 1:
            msg = (
                f"lengths {list(self.lengths)}: expected positive numbers of tokens, "
                f"1 (decode) among them."
            )
            raise ConfigError(msg)
        if self.max_length is not None and not 1 <= self.max_length <= limit:
            msg = f"max_length {self.max_length}: the model has positions for 1 to {limit} tokens."
            raise ConfigError(msg)
        for layer, weight_format in self.linears.items():
            try:
                storage_of(weight_format, self.target)
            except ConfigError as error:
                raise type(error)(f"{layer}: {error}") from error

    @property
    def linears(self) -> dict[str, WeightFormat]:
        """Formats of every linear that a packed product takes the place of."""
        return {**self.formats, **self.heads}

    @property
    def kernels(self) -> bool:
        """Whether kernels of ours compute every product of the blocks."""
        found = [storage_of(of, self.target) for of in self.formats.values()]
        return bool(found) and not any(isinstance(stored, Layout) for stored in found)

    @property
    def flavour(self) -> Flavour | None:
        """Of kernels for CPUs, which depends on this machine's; None on other targets."""
        return host_flavour() if self.target.kernels == "vector" else None

    @property
    def geometry(self) -> Geometry:
        """What the step must know of the architecture."""
        return Geometry.of(self.config)

    def blocks(self, tokens: int) -> dict[str, BlockFormat]:
        """Decoder blocks that a kernel of ours takes whole in a step of so many tokens, by name."""
        if self.target.kernels != "vector" or self.dtype != "float32":
            return {}
        return block_formats(self.config, self.formats, self.shape(tokens), host_flavour())

    def attentions(self, tokens: int) -> dict[str, AttentionFormat]:
        """Decoder blocks whose attention is a kernel of ours in a step of so many tokens."""
        if self.target.kernels != "vector" or self.dtype != "float32":
            return {}
        return attention_formats(self.config, self.shape(tokens))

    def shape(self, tokens: int) -> StepShape:
        """Sizes of the step that takes so many tokens; caches have room for any padded tail."""
        max_length = self.max_length or self.geometry.max_positions
        longest = max(self.lengths)
        cache_length = -(-max_length // longest) * longest
        return StepShape(tokens, max_length, cache_length, self.batch)

    def fingerprint(self) -> dict[str, Any]:
        """Plain data on which the compiled module depends; costs no export.

        Equal data, equal module: nothing of it is a weight's number.
        """
        shape, config = self.shape(1), json.loads(self.config.to_json_string(use_diff=False))
        return {
            "config": {key: config[key] for key in sorted(config) if key != "_name_or_path"},
            "dtype": self.dtype,
            "formats": {name: self.formats[name].to_json() for name in sorted(self.formats)},
            "target": {
                "name": self.target.name,
                "flags": [*COMMON_FLAGS, *self.target.flags],
                "device": self.target.device,
                "kernels": self.flavour,
            },
            "host": host_cpu() if "host" in " ".join(self.target.flags) else None,
            "heads": {name: self.heads[name].to_json() for name in sorted(self.heads)},
            "tables": {name: self.tables[name].to_json() for name in sorted(self.tables)},
            "batch": self.batch,
            "lengths": sorted(self.lengths),
            "max_length": shape.max_length,
            "cache_length": shape.cache_length,
            "versions": compiler_versions(),
            "lowering": source_hash(),
        }


@dataclass(frozen=True)
class LoweredModel:
    """The text of every stage and the compiled module.

    parameters: names the module reads from its parameter file
    meta: what `CompiledModel` needs beside the module and the parameters; plain data
    """

    torch: str
    annotated: str
    storage: str
    target: str
    vmfb: bytes
    parameters: tuple[str, ...]
    meta: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `module.vmfb` and `module.json`, and nothing that depends on weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "module.vmfb").write_bytes(self.vmfb)
        data = {**self.meta, "parameters": list(self.parameters)}
        (folder / "module.json").write_text(json.dumps(data, indent=1, sort_keys=True), "utf-8")


def lower(
    model: nn.Module, plan: Lowering, progress: Callable[[str], None] = lambda _: None
) -> LoweredModel:
    """Export, annotate, store and compile.  `model` may be on `meta`: its numbers are not read.

    progress: told each stage as it starts
    """
    found = {
        str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()
    }
    if found != {plan.dtype}:
        msg = f"model: its parameters are {', '.join(sorted(found))}, the plan says {plan.dtype}."
        raise ConfigError(msg)
    progress("export")
    formats = plan.linears
    functions = [
        function
        for tokens in plan.lengths
        for function in export_functions(
            model,
            formats,
            plan.geometry,
            plan.shape(tokens),
            plan.tables,
            partial(packed_blocks, blocks=plan.blocks(tokens), attentions=plan.attentions(tokens)),
        )
    ]
    blocks = plan.blocks(1)
    attentions = {
        (name, tokens): attention
        for tokens in plan.lengths
        for name, attention in plan.attentions(tokens).items()
    }
    torch_text = merged(functions, "torch")
    progress("annotate")
    annotated = call_packed(
        torch_text,
        lambda name, rows: annotated_call(name, formats[name], rows),
        lambda name: annotated_block(name, blocks[name]),
        lambda name, tokens: attention_call(attentions[name, tokens]),
    )
    progress("storage")
    kernels = {
        attention.function: attention_kernels(attention, pause=plan.flavour != "floats")
        for attention in dict.fromkeys(attentions.values())
    }

    def stored_call(layer: str, rows: int) -> PackedCall:
        call = storage_call(layer, formats[layer], rows, plan.target)
        if call.function not in kernels:
            storage = storage_of(formats[layer], plan.target)
            found = kernels_of(storage, call.function, rows, plan.dtype)
            if found is not None:
                kernels[call.function] = found
        return call

    def stored_block(name: str) -> PackedCall:
        call = storage_block(name, blocks[name])
        if call.function not in kernels:
            kernels[call.function] = block_kernels(blocks[name], host_flavour())
        return call

    stored = substitute_packed(annotated, stored_call, stored_block)
    progress("compile")
    final = target_text(with_kernels(stored, kernels.values()), plan.target)
    vmfb = compile_text(final, plan.target)
    geometry, shape = plan.geometry, plan.shape(1)
    meta = {
        "lengths": sorted(plan.lengths),
        "max_length": shape.max_length,
        "cache": [plan.batch, geometry.kv_heads, shape.cache_length, geometry.head_dim],
        "caches": 2 * geometry.layers,
        "dtype": plan.dtype,
        "target": plan.target.name,
        "path": "kernel" if plan.kernels else "compiled",
        "flavour": plan.flavour,
    }
    names = tuple(global_names(stored, "storage"))
    return LoweredModel(torch_text, annotated, stored, final, vmfb, names, meta)


def parameter_tensors(
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    names: Sequence[str],
    plan: Lowering,
) -> dict[str, Tensor]:
    """The tensors that a module of the plan reads: packed weights, and what else of the model it
    needs, tied ones once.

    weights: of the plan's formats, heads and tables
    """
    owned = dict(model.named_buffers()) | dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name in names:
        layer, _, key = name.rpartition(".")
        if layer in weights:
            if layer not in packed:  # names are sorted: one at a time
                packed = {layer: _stored(layer, weights[layer], plan)}
            if key in packed[layer]:
                found[name] = packed[layer][key]
                continue
        found[name] = owned[name].detach()
    return {name: tensor.contiguous().cpu() for name, tensor in found.items()}


def _stored(layer: str, weight: CompressedWeight, plan: Lowering) -> dict[str, Tensor]:
    """The tensors of one layer; ConfigError, with its name, if its storage does not take it."""
    if layer not in plan.tables:
        try:
            return storage_of(format_of(weight), plan.target).pack(weight)
        except ConfigError as error:
            msg = f"{layer}: {error}"
            raise ConfigError(msg) from error
    assert isinstance(weight, Dense | Quantized)
    return table_tensors(weight)


def write_parameters(
    path: Path,
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    names: Sequence[str],
    plan: Lowering,
) -> None:
    """Write the parameters of a module of the plan as one safetensors file."""
    save_file(parameter_tensors(model, weights, names, plan), path)


@cache
def source_hash() -> str:
    """Hash of this package's sources: a change of the compiler's own code makes new modules."""
    digest = hashlib.sha256()
    sources = Path(__file__).parent.rglob("*")
    for path in sorted(path for path in sources if path.suffix in (".py", ".ptx")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def host_cpu() -> str:
    """What code for 'the host' depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else [platform.processor()]
    flags = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return hashlib.sha256("\n".join([platform.machine(), *sorted(flags)]).encode()).hexdigest()
