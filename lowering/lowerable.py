"""Which models can be lowered, told from their configuration before anything is exported."""

from typing import Any

from trinity.methods.errors import UnsupportedError

ATTENTIONS = frozenset({"full_attention", "sliding_attention"})
# Kinds whose attention adds a number for the distance (ALiBi), made inside from a mask of one row.
OF_DISTANCES = frozenset({"bloom", "mpt"})
OF_LENGTHS = ("dynamic", "longrope")  # rope variants whose frequencies depend on the length


def check_lowerable(config: Any) -> None:
    """UnsupportedError names what of a model a step cannot express.

    config: transformers', which lowering must not import
    """
    for reason in (_rope(config), _alibi(config), _layers(config), _direction(config)):
        if reason:
            msg = (
                f"model type {config.model_type}: {reason} cannot be lowered. Leave `lower:` out "
                f"and evaluate it with the torch engine."
            )
            raise UnsupportedError(msg)


def _rope(config: Any) -> str | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    kinds = [str(of.get("rope_type", "")) for of in nested or [parameters]]
    found = next((kind for kind in kinds if any(word in kind for word in OF_LENGTHS)), None)
    return f"rope '{found}', whose frequencies depend on how long a text is," if found else None


def _alibi(config: Any) -> str | None:
    alibi = config.model_type in OF_DISTANCES or getattr(config, "alibi", False)
    return "attention with linear biases (ALiBi)" if alibi else None


def _layers(config: Any) -> str | None:
    unknown = set(getattr(config, "layer_types", None) or ()) - ATTENTIONS
    return f"blocks of type {', '.join(sorted(unknown))}" if unknown else None


def _direction(config: Any) -> str | None:
    both = getattr(config, "use_bidirectional_attention", False)
    return "attention that sees what follows" if both else None
