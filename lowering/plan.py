"""All that a module depends on, and the key of the cache that follows from it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trinity.lowering.geometry import Geometry, StepShape
from trinity.lowering.kernels.decoder_parts import cache_row
from trinity.lowering.kernels.target_kernels import FusedKernel
from trinity.lowering.lowerable import check_lowerable
from trinity.lowering.targets.choose import cache_refusal, storage_of
from trinity.lowering.targets.targets import COMMON_FLAGS, Target
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.formats import CacheFormat, WeightFormat

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
    cache: how keys and values are kept; None as floats
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
    cache: CacheFormat | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that make no engine, before anything is exported."""
        check_lowerable(self.config)
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
        if self.cache and (reason := cache_refusal(self.cache, self.target)):
            msg = f"cache {self.cache.label}: {reason}."
            raise UnsupportedError(msg)

    @property
    def linears(self) -> dict[str, WeightFormat]:
        """Formats of every linear that a packed product takes the place of."""
        return {**self.formats, **self.heads}

    @property
    def kernels(self) -> bool:
        """Whether kernels of ours compute every product of the blocks."""
        return set(self.paths.values()) == {"kernel"}

    @property
    def paths(self) -> dict[str, str]:
        """Of each compressed linear: 'kernel' where one of ours computes it, else 'compiled'."""
        return {name: storage_of(of, self.target).path for name, of in self.formats.items()}

    @property
    def flavour(self) -> str | None:
        """Of the target's kernels, where it depends on this machine."""
        return self.target.kernels().flavour if self.target.kernels else None

    @property
    def geometry(self) -> Geometry:
        """What the step must know of the architecture."""
        return Geometry.of(self.config)

    def fused(self, operator: str) -> FusedKernel[Any] | None:  # of any operator
        """The target's kernel of an operator, None if it has none; all take float32 models."""
        if self.target.kernels is None or self.dtype != "float32":
            return None
        return self.target.kernels().fused.get(operator)

    def shape(self, tokens: int) -> StepShape:
        """Sizes of the step that takes so many tokens; caches have room for any padded tail."""
        max_length = self.max_length or self.geometry.max_positions
        longest = max(self.lengths)
        cache_length = -(-max_length // longest) * longest
        return StepShape(tokens, max_length, cache_length, self.batch)

    @property
    def caches(self) -> tuple[int, ...]:
        """Shape of one block's keys, or values, as a step takes them."""
        geometry, length = self.geometry, self.shape(1).cache_length
        return (self.batch, geometry.kv_heads, length, cache_row(geometry.head_dim, self.cache))

    def fingerprint(self) -> dict[str, Any]:
        """Plain data on which the compiled module depends; costs no export.

        Equal data and equal code, equal module: nothing of it is a weight's number.
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
            "host": host_cpu() if self.target.for_host else None,
            "heads": {name: self.heads[name].to_json() for name in sorted(self.heads)},
            "tables": {name: self.tables[name].to_json() for name in sorted(self.tables)},
            "batch": self.batch,
            "lengths": sorted(self.lengths),
            "cache": self.cache.to_json() if self.cache else None,
            "max_length": shape.max_length,
            "cache_length": shape.cache_length,
            "versions": compiler_versions(),
        }


def compiler_versions() -> dict[str, str]:
    """Versions of all that turns a model into a module."""
    packages = ("torch", "transformers", "torch-mlir", "iree-base-compiler")
    return {name: version(name) for name in packages}


@cache
def host_cpu() -> str:
    """What code for 'the host' depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else [platform.processor()]
    flags = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return hashlib.sha256("\n".join([platform.machine(), *sorted(flags)]).encode()).hexdigest()
