"""Which compression methods there are.  Reading one table tells all that is built in."""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from trinity.methods.contract import (
    BlockMethod,
    CheckpointSource,
    Method,
    MethodConfig,
    ModelMethod,
    Registered,
)
from trinity.methods.errors import ConfigError, nearest

GROUP = "trinity.methods"

BUILT_IN = {
    "dense": "trinity.methods.dense:DENSE",
    "gptq": "trinity.methods.gptq:GPTQ",
    "gptq-checkpoint": "trinity.methods.gptq_checkpoint:GPTQ_CHECKPOINT",
    "l2qer": "trinity.methods.l2qer:L2QER",
    "magnitude": "trinity.methods.magnitude:MAGNITUDE",
    "optima": "trinity.methods.optima:OPTIMA",
    "rtn": "trinity.methods.rtn:RTN",
    "slim": "trinity.methods.slim:SLIM",
    "slim-lora": "trinity.methods.slim_lora:SLIM_LORA",
    "slim-quant": "trinity.methods.slim_quant:SLIM_QUANT",
    "slim-quant-o": "trinity.methods.slim_quant_o:SLIM_QUANT_O",
    "slim-tune": "trinity.methods.slim_tune:SLIM_TUNE",
    "slope": "trinity.methods.slope:SLOPE",
    "sparsegpt": "trinity.methods.sparsegpt:SPARSEGPT",
    "wanda": "trinity.methods.wanda:WANDA",
}


def names() -> list[str]:
    """Every registered name, built-in and third-party, sorted; loads no method."""
    return sorted(_owners())


def owner(name: str) -> str:
    """'trinity' or the distribution that registers `name`."""
    return _owners()[name][0]


def get(name: str) -> Registered:
    """Load a method by name; ConfigError with the nearest names if there is none."""
    owners = _owners()
    if name not in owners:
        msg = (
            f"method '{name}' is not registered.{nearest(name, sorted(owners))} "
            f"`trinity methods list` lists all; plugins register in the group '{GROUP}'."
        )
        raise ConfigError(msg)
    distribution, target = owners[name]
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"method '{name}' of {distribution}: '{target}' cannot be loaded ({error})."
        raise ConfigError(msg) from error
    # A class has its instances' attributes, so it would pass as a protocol, and fail when called.
    kinds = (Method, BlockMethod, ModelMethod, CheckpointSource)
    if isinstance(found, type) or not isinstance(found, kinds):
        msg = (
            f"method '{name}' of {distribution}: '{target}' is a {type(found).__name__} that is "
            f"neither a Method, a BlockMethod, a ModelMethod nor a CheckpointSource "
            f"(trinity.methods.contract)."
        )
        raise ConfigError(msg)
    if found.name != name:
        msg = (
            f"method '{name}' of {distribution}: '{target}' calls itself '{found.name}'. "
            f"Rename one of the two."
        )
        raise ConfigError(msg)
    return found


def configure(name: str, options: dict[str, Any]) -> MethodConfig:
    """Turn a recipe's options into a method's frozen config; ConfigError names the wrong key."""
    schema = get(name).config
    unknown = sorted(set(options) - set(schema.model_fields))
    if unknown:
        known = sorted(schema.model_fields)
        hints = "".join(nearest(key, known) for key in unknown)
        options_known = f"Options: {', '.join(known)}." if known else "It has no options."
        msg = f"method '{name}' has no option {', '.join(unknown)}.{hints} {options_known}"
        raise ConfigError(msg)
    try:
        return schema.model_validate(options)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'options'}: {item['msg']}, "
            f"found {item['input']!r}"
            for item in error.errors()
        )
        msg = f"method '{name}': {problems}."
        raise ConfigError(msg) from error


@cache
def _owners() -> dict[str, tuple[str, str]]:
    """Name -> (distribution, 'module:object')."""
    owners = {name: ("trinity", target) for name, target in BUILT_IN.items()}
    for entry in entry_points(group=GROUP):
        distribution = _distribution(entry)
        if entry.name in owners and owners[entry.name] != (distribution, entry.value):
            msg = (
                f"method '{entry.name}' is registered twice: by {owners[entry.name][0]} "
                f"({owners[entry.name][1]}) and by {distribution} ({entry.value}). Uninstall one."
            )
            raise ConfigError(msg)
        owners[entry.name] = (distribution, entry.value)
    return owners


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"
