"""Which compression methods there are.  Reading one table tells all that is built in."""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trinity.methods.errors import ConfigError, nearest
from trinity.methods.plugins import Group, Owner

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from trinity.methods.contract import MethodConfig
    from trinity.methods.declarations import Registered

GROUP = "trinity.methods"

BUILT_IN = {
    "aqlm": "trinity.methods.aqlm:AQLM",
    "awq": "trinity.methods.awq:AWQ",
    "awq-clip": "trinity.methods.awq_clip:AWQ_CLIP",
    "beam": "trinity.methods.beam:BEAM",
    "bitstack": "trinity.methods.bitstack:BITSTACK",
    "bitstack-sort": "trinity.methods.bitstack_sort:BITSTACK_SORT",
    "cap": "trinity.methods.cap:CAP",
    "dense": "trinity.methods.dense:DENSE",
    "eora": "trinity.methods.eora:EORA",
    "evopress": "trinity.methods.evopress:EVOPRESS",
    "fp8": "trinity.methods.fp8:FP8",
    "gear": "trinity.methods.gear:GEAR",
    "gptaq": "trinity.methods.gptaq:GPTAQ",
    "gptq": "trinity.methods.gptq:GPTQ",
    "gptq-checkpoint": "trinity.methods.gptq_checkpoint:GPTQ_CHECKPOINT",
    "gptq-codebook": "trinity.methods.gptq_codebook:GPTQ_CODEBOOK",
    "jsq": "trinity.methods.jsq:JSQ",
    "l2qer": "trinity.methods.l2qer:L2QER",
    "magnitude": "trinity.methods.magnitude:MAGNITUDE",
    "mxfp4": "trinity.methods.mxfp4:MXFP4",
    "nf4": "trinity.methods.nf4:NF4",
    "nvfp4": "trinity.methods.nvfp4:NVFP4",
    "optima": "trinity.methods.optima:OPTIMA",
    "owl": "trinity.methods.owl:OWL",
    "patch": "trinity.methods.patch:PATCH",
    "quarot": "trinity.methods.quarot:QUAROT",
    "rtn": "trinity.methods.rtn:RTN",
    "rtn-cache": "trinity.methods.rtn_cache:RTN_CACHE",
    "slim": "trinity.methods.slim:SLIM",
    "slim-lora": "trinity.methods.slim_lora:SLIM_LORA",
    "slim-quant": "trinity.methods.slim_quant:SLIM_QUANT",
    "slim-quant-o": "trinity.methods.slim_quant_o:SLIM_QUANT_O",
    "slim-tune": "trinity.methods.slim_tune:SLIM_TUNE",
    "slope": "trinity.methods.slope:SLOPE",
    "smoothquant": "trinity.methods.smoothquant:SMOOTHQUANT",
    "sparsegpt": "trinity.methods.sparsegpt:SPARSEGPT",
    "spqr": "trinity.methods.spqr:SPQR",
    "squeezellm": "trinity.methods.squeezellm:SQUEEZELLM",
    "wanda": "trinity.methods.wanda:WANDA",
}


_PLUGINS = Group(GROUP, "method", lambda: BUILT_IN.items())


def names() -> list[str]:
    """Every registered name, built-in and third-party, sorted; loads no method."""
    return _PLUGINS.names()


def owner(name: str) -> str:
    """'trinity' or the distribution that registers `name`."""
    return _PLUGINS.owner(name).distribution


def owners(name: str) -> list[Owner]:
    """All who register `name`: more than one is an error where it is used."""
    return _PLUGINS.owners(name)


def get(name: str) -> "Registered":
    """Load a method by name; ConfigError with the nearest names if there is none."""
    found = _PLUGINS.load(name)
    # Imported here: it loads torch, and to know which methods there are must not.
    from trinity.methods.declarations import KINDS, of_wrong_types

    target = _PLUGINS.owner(name).target
    # A class has its instances' attributes, so it would pass as a protocol, and fail when called.
    if isinstance(found, type) or not isinstance(found, KINDS):
        what = (
            f"'{target}' is of type {type(found).__name__}, which is neither a Method, a "
            f"BlockMethod, a TransformMethod, a PlanMethod, a SearchMethod, a RotationMethod, a "
            f"CacheMethod, a ModelMethod nor a CheckpointSource (trinity.methods.contract, "
            f".transforms, .planning, .searching, .rotations and .caching)"
        )
        raise _PLUGINS.broken(name, what)
    if found.name != name:
        raise _PLUGINS.broken(name, f"'{target}' calls itself '{found.name}'; the names differ")
    if wrong := of_wrong_types(found):
        raise _PLUGINS.broken(name, f"'{target}': {'; '.join(wrong)}")
    return found


def configure(name: str, options: dict[str, Any]) -> "MethodConfig":
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
        config = schema.model_validate(options)
        config.model_dump(mode="json")  # what fingerprints and records hold
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        msg = f"method '{name}': {problems}. `trinity methods show {name}` describes the options."
        raise ConfigError(msg) from error
    except Exception as error:
        # A plugin's own checks, and values of its own types, may fail in any way.
        what = f"its options {options} cannot be read or written as JSON ({error!r})"
        raise _PLUGINS.broken(name, what) from error
    return config


def _problem(item: "ErrorDetails") -> str:
    """What is wrong with one option."""
    where = ".".join(map(str, item["loc"])) or "options"
    if item["type"] == "missing":
        return f"needs the option {where}"
    return f"{where}: {item['msg'].removeprefix('Input ')}, found {item['input']!r}"
