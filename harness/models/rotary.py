"""Rope variants whose frequencies depend on how long a sequence is.

transformers takes the longest position of a forward for all of its sequences, and `dynamic` keeps
the frequencies of the longest sequence that it ever read, until it reads a short one.
"""

from typing import Any

from torch import nn


def unchanged_up_to(config: Any) -> int | None:
    """Positions up to which frequencies are the model's own; None where they never change.

    config: of transformers, which has no common type for it
    """
    limits = []
    for parameters in _parameters(config):
        kind = str(parameters.get("rope_type", ""))
        if "dynamic" in kind:
            limits.append(config.max_position_embeddings)
        elif kind == "longrope":
            limits.append(parameters["original_max_position_embeddings"])
    return min(limits, default=None)


def _parameters(config: Any) -> list[dict[str, Any]]:
    """The model's rope parameters: one set, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


class Rotaries:
    """The rotary embeddings of a model that remember the longest sequence."""

    def __init__(self, model: nn.Module) -> None:
        """model: of any kind"""
        config = getattr(model, "config", None)
        dynamic = any("dynamic" in str(p.get("rope_type", "")) for p in _parameters(config))
        self._modules: list[Any] = [
            module for module in model.modules() if dynamic and hasattr(module, "rope_type")
        ]

    def forget(self) -> None:
        """Back to the frequencies of a model that has read nothing."""
        for module in self._modules:
            kinds = [f"{kind}_" for kind in module.rope_type] if _by_layer(module) else [""]
            for kind in kinds:
                own = getattr(module, f"{kind}original_inv_freq")
                setattr(module, f"{kind}inv_freq", own.to(getattr(module, f"{kind}inv_freq")))
                setattr(module, f"{kind}max_seq_len_cached", module.original_max_seq_len)


def _by_layer(module: Any) -> bool:
    return isinstance(module.rope_type, dict)
