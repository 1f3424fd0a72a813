"""How a model's keys and values are kept, as a checkpoint declares it, and a model in torch whose
attention reads them so.

Keys are rounded as attention gets them, after the rotary embedding.  The model library goes on
keeping them as floats, and every forward rounds all that are behind it again: what attention reads
is the same at every step, whether a text was read at once, in parts or token by token.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from trinity.harness.recipes.recipe import CompressSpec
from trinity.lowering.graph.attention import grouped_attention
from trinity.methods import registry
from trinity.methods.caching import CacheMethod
from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError, RecordError, TrinityError, UnsupportedError
from trinity.methods.formats import CacheFormat

SINKS = "s_aux"  # an argument of attentions whose softmax has one more entry (gpt-oss)


@dataclass(frozen=True)
class Caching:
    """A cache method with its checked options."""

    name: str
    method: CacheMethod[MethodConfig]
    config: MethodConfig

    @staticmethod
    def of(name: str, options: dict[str, Any]) -> "Caching":
        """From what a recipe or a checkpoint says; ConfigError if that is no cache method."""
        method = registry.get(name)
        if not isinstance(method, CacheMethod):
            msg = (
                f"compress.cache: method '{name}' does not keep keys and values. Make it one of "
                f"`compress.steps`, or take one of `trinity methods list` that sees the cache."
            )
            raise ConfigError(msg)
        return Caching(name, method, registry.configure(name, options))

    @property
    def format(self) -> CacheFormat:
        """What the cache holds."""
        return self.method.cache_format(self.config)

    @property
    def label(self) -> str:
        """'rtn-cache: int8 token and head'."""
        return f"{self.name}: {self.format.label}"

    def check(self, config: Any, where: str) -> None:
        """ConfigError where a model's heads are not kept so.  config: of transformers"""
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        if problem := self.method.cache_problem(width, self.config):
            msg = f"{where}: {self.name}: {problem}."
            raise ConfigError(msg)
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if self.format.together > 1 and (sliding or _window(config)):
            msg = (
                f"{where}: {self.name} rounds {self.format.together} positions together, and the "
                f"model's sliding window cuts through them. Use rtn-cache."
            )
            raise UnsupportedError(msg)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`; `from_json` reads it back."""
        options = self.config.model_dump(mode="json")
        return {"method": self.name, "options": options, "format": self.format.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Caching":
        """Read what `to_json` wrote; RecordError if it is not that."""
        try:
            found = Caching.of(data["method"], dict(data["options"]))
            kept = CacheFormat.from_json(data["format"])
        except (TrinityError, KeyError, TypeError, ValueError) as error:
            msg = f"cache {dict(data)}: cannot be read ({error})."
            raise RecordError(msg) from error
        if kept != found.format:
            msg = (
                f"cache {dict(data)}: {found.name} keeps {found.format.label} here, not "
                f"{kept.label}: another version of it wrote this."
            )
            raise RecordError(msg)
        return found

    def install(self, model: Any) -> None:
        """Let a model's attention read rounded keys and values (transformers has no type for it).

        UnsupportedError for a model whose attention cannot be exchanged.
        """
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
        name = f"trinity_cache_{digest[:12]}"
        AttentionInterface.register(name, partial(cached_attention, caching=self))
        AttentionMaskInterface.register(name, eager_mask)
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            msg = (
                f"model type {model.config.model_type}: the library does not let its attention be "
                f"exchanged, so {self.name} cannot round what it reads."
            )
            raise UnsupportedError(msg)


def caching_of(spec: CompressSpec, config: Any) -> Caching | None:
    """What a recipe says of a model's cache; ConfigError where it does not fit.

    config: of transformers
    """
    if spec.cache is None:
        return None
    found = Caching.of(spec.cache.method, spec.cache.options)
    found.check(config, "compress.cache")
    return found


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    caching: Caching,
    **options: Any,  # as many as transformers' attentions take
) -> tuple[Tensor, None]:
    """Attention that reads rounded keys and values.

    query: [batch, heads, T, d]   key, value: [batch, kv_heads, L, d]
    attention_mask: [1 or batch, 1, T, L], added   -> [batch, T, heads, d]
    """
    if options.get(SINKS) is not None:
        msg = f"{type(module).__name__}: its attention has sinks, which caches are not rounded for."
        raise UnsupportedError(msg)
    assert attention_mask is not None  # as `eager_mask` makes one
    together = caching.format.together
    if together == 1:
        keys, values = _rounded(caching, key, value)
        return grouped_attention(module, query, keys, values, attention_mask, **options)
    groups = key.shape[2] // together
    old_keys, old_values = key[:, :, :0], value[:, :, :0]
    if groups:
        old_keys, old_values = (
            _joined(part, key.shape[0])
            for part in _rounded(caching, *(_grouped(x, groups, together) for x in (key, value)))
        )
    keys, values = torch.cat([old_keys, key], 2), torch.cat([old_values, value], 2)
    mask = _of_both(attention_mask, groups * together, together)
    return grouped_attention(module, query, keys, values, mask, **options)


def _rounded(caching: Caching, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    found = caching.method.rounded_cache(key.float(), value.float(), caching.config)
    return found[0].to(key.dtype), found[1].to(value.dtype)


def _grouped(x: Tensor, groups: int, together: int) -> Tensor:
    """[batch, heads, L, d] -> [batch * groups, heads, together, d], of whole groups."""
    batch, heads, _, width = x.shape
    whole = x[:, :, : groups * together].reshape(batch, heads, groups, together, width)
    return whole.transpose(1, 2).flatten(0, 1)


def _joined(x: Tensor, batch: int) -> Tensor:
    """Inverse of `_grouped`.  -> [batch, heads, groups * together, d]"""
    return x.view(batch, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)


def _of_both(mask: Tensor, rounded: int, together: int) -> Tensor:
    """The mask over rounded keys and all keys behind them: of its own group a position sees the
    floats, of earlier ones what was rounded.

    mask: [.., T, L], its last query at the last key  -> [.., T, rounded + L]
    """
    tokens, length = mask.shape[-2:]
    places = torch.arange(length, device=mask.device) // together
    own = places[length - tokens :, None]
    never = torch.finfo(mask.dtype).min
    old = mask[..., :rounded].masked_fill(places[:rounded] >= own, never)
    return torch.cat([old, mask.masked_fill(places != own, never)], -1)


def _window(config: Any) -> bool:
    return bool(getattr(config, "sliding_window", None)) and getattr(
        config, "use_sliding_window", True
    )
