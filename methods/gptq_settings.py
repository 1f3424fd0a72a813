"""What a GPTQ folder says about its own tensors, in the words of the programs that write it.

| file                 | where                 | written by                                 |
|----------------------|-----------------------|--------------------------------------------|
| quantize_config.json | the whole             | AutoGPTQ, GPTQModel, optimum, this project |
| quant_config.json    | the whole             | the same, an older name                    |
| config.json          | `quantization_config` | transformers, GPTQModel, this project      |

Keys that differ between writers: `bits` is also `w_bit` or `wbits`, `group_size` also
`q_group_size`, `checkpoint_format` also `format` (absent: the first version), `quant_method` also
`method`.  `dynamic` (GPTQModel) maps regular expressions over layer names to other settings; the
first that matches from the start of the name counts, and one that begins with '-:' leaves the layer
dense.  `modules_in_block_to_quantize` (transformers) lists the ends of the quantized layers' names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trinity.methods.errors import ConfigError, UnsupportedError

Version = Literal["gptq", "gptq_v2"]
FILES = ("quantize_config.json", "quant_config.json", "config.json")
SECTION = "quantization_config"  # of config.json
ALIASES = {
    "w_bit": "bits",
    "wbits": "bits",
    "q_group_size": "group_size",
    "format": "checkpoint_format",
    "method": "quant_method",
}
DENSE = "-:"  # how a rule of `dynamic` begins that leaves its layers dense


class _Section(BaseModel):
    """The keys that say how tensors are read; what else a writer notes is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    bits: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    desc_act: bool | None = None
    lm_head: bool | None = None
    checkpoint_format: str | None = None
    quant_method: str | None = None
    is_marlin_format: bool | None = None
    pack_dtype: str | None = None
    rotation: str | None = None
    dynamic: dict[str, dict[str, Any]] | None = None  # rules may hold any key of a writer
    modules_in_block_to_quantize: list[list[str]] | list[str] | None = None
    meta: dict[str, Any] | None = None  # a writer's own notes


@dataclass(frozen=True)
class LayerSettings:
    """What is said of one layer; None where nothing is.

    where: the file, for messages   group_size: -1 for all inputs
    borrows: in version `gptq`, one was subtracted from whole words of zero points, so that a zero
        point of 0 borrowed from its neighbour (GPTQModel); else from each by itself
    """

    where: str = "the folder's configuration"
    bits: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    desc_act: bool | None = None
    borrows: bool = False

    def groups(self, d_in: int) -> int | None:
        """Groups of a layer of `d_in` inputs, the last of which may be short."""
        if self.group_size is None:
            return None
        return 1 if self.group_size == -1 else ceil(d_in / self.group_size)

    def contradiction(self, key: str, found: str) -> ConfigError:
        """The error where the tensors are not what the folder says."""
        value = getattr(self, key)
        text = str(value).lower() if isinstance(value, bool) else value
        return ConfigError(
            f"gptq-checkpoint: {found}, but {self.where} says `{key}: {text}`. One of the two is "
            f"damaged or of another model: get the checkpoint again, or correct the file."
        )


@dataclass(frozen=True)
class GptqSettings:
    """What is said of a whole checkpoint.

    version: None where nothing is said   dynamic: regular expression -> other settings
    modules: ends of the names of quantized layers, None for any
    """

    base: LayerSettings = field(default_factory=LayerSettings)
    version: Version | None = None
    dynamic: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    modules: tuple[str, ...] | None = None

    def of_layer(self, name: str) -> LayerSettings:
        """The settings of a layer that is quantized; ConfigError if it is said not to be."""
        if self.modules is not None and not name.endswith(self.modules):
            raise self._dense(name, "`modules_in_block_to_quantize`, which does not list it")
        for rule, changes in self.dynamic.items():
            if not _matches(rule, name, self.base.where):
                continue
            if rule.startswith(DENSE):
                raise self._dense(name, f"the rule '{rule}' of `dynamic`")
            changed = _parse(changes, f"{self.base.where}, dynamic '{rule}'")
            said = changed.model_dump(include={"bits", "group_size", "sym", "desc_act"})
            known = {key: value for key, value in said.items() if value is not None}
            return replace(self.base, where=f"{self.base.where}, dynamic '{rule}'", **known)
        return self.base

    def _dense(self, name: str, why: str) -> ConfigError:
        return ConfigError(
            f"gptq-checkpoint: {name}.qweight holds a quantized layer, but {self.base.where} "
            f"leaves it dense, by {why}. One of the two is of another model: correct the file."
        )


def read_settings(files: Mapping[str, Mapping[str, Any]]) -> GptqSettings:
    """The settings of a folder; ConfigError where its files contradict each other.

    files: name -> content, of the folder's JSON files; UnsupportedError names another format
    """
    sections = {}
    for name in FILES:
        content = files.get(name, {}).get(SECTION) if name == "config.json" else files.get(name)
        if content is not None and content != {}:
            sections[name] = _parse(content, name)
    if not sections:
        return GptqSettings()
    said = _merged(sections)
    where = " and ".join(sections)
    version = _version(said, where)
    modules = said.modules_in_block_to_quantize
    ends = (end for item in modules or () for end in ([item] if isinstance(item, str) else item))
    writers = (said.meta or {}).get("quantizer")
    names = map(str, writers if isinstance(writers, list) else [writers])
    base = LayerSettings(
        where,
        said.bits,
        said.group_size,
        said.sym,
        said.desc_act,
        borrows=any(name.startswith("gptqmodel") for name in names),
    )
    rules = said.dynamic or {}
    for rule, changes in rules.items():  # those that match no layer too
        _matches(rule, "", where)
        _parse(changes, f"{where}, dynamic '{rule}'")
    return GptqSettings(base, version, rules, tuple(ends) if modules else None)


def _matches(rule: str, name: str, where: str) -> bool:
    try:
        return re.match(rule.removeprefix(DENSE).removeprefix("+:"), name) is not None
    except re.error as error:
        msg = f"gptq-checkpoint: {where}: the rule '{rule}' of `dynamic` is no pattern ({error})."
        raise ConfigError(msg) from error


def _parse(content: object, where: str) -> _Section:
    """One section with its keys under one name; ConfigError if a value makes no sense."""
    if not isinstance(content, Mapping):
        msg = (
            f"gptq-checkpoint: {where}: expected settings by name, found {content!r:.80}. Get the "
            f"file again."
        )
        raise ConfigError(msg)
    keys: dict[str, Any] = {}
    for key, value in content.items():
        name = ALIASES.get(key.lower(), key.lower())
        if keys.setdefault(name, value) != value:
            msg = (
                f"gptq-checkpoint: {where} says `{name}` twice, {keys[name]!r} and {value!r}. "
                f"Leave one of them."
            )
            raise ConfigError(msg)
    try:
        section = _Section.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        msg = f"gptq-checkpoint: {where} says `{key}: {first['input']!r}`: {first['msg']}."
        raise ConfigError(msg) from error
    if section.group_size is not None and section.group_size < 1 and section.group_size != -1:
        msg = (
            f"gptq-checkpoint: {where} says `group_size: {section.group_size}`; expected a number "
            f"of inputs, or -1 for all of them."
        )
        raise ConfigError(msg)
    return section


def _merged(sections: Mapping[str, _Section]) -> _Section:
    """What several files say together; ConfigError names a key on which they do not agree."""
    merged: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, section in sections.items():
        for key, value in section.model_dump(exclude_none=True).items():
            if key != "meta" and merged.get(key, value) != value:
                msg = (
                    f"gptq-checkpoint: {owners[key]} says `{key}: {merged[key]}` and {name} "
                    f"`{key}: {value}`. Correct the one that is wrong."
                )
                raise ConfigError(msg)
            merged.setdefault(key, value)
            owners.setdefault(key, name)
    return _Section.model_validate(merged)


def _version(said: _Section, where: str) -> Version | None:
    """UnsupportedError unless the tensors are in one of the two layouts that are read here."""
    kinds = {
        "quant_method": (said.quant_method, ("gptq",)),
        "checkpoint_format": (said.checkpoint_format, ("gptq", "gptq_v2")),
        "pack_dtype": (said.pack_dtype, ("int32",)),
        "rotation": (said.rotation, ()),
        "is_marlin_format": ("true" if said.is_marlin_format else None, ()),
    }
    for key, (value, read) in kinds.items():
        if value is not None and value.lower() not in read:
            expected = f" Read here: {' or '.join(read)}." if read else ""
            msg = (
                f"gptq-checkpoint: {where} says `{key}: {value}`, another layout than that of the "
                f"GPTQ format.{expected}"
            )
            raise UnsupportedError(msg)
    version = (said.checkpoint_format or "").lower()
    return "gptq_v2" if version == "gptq_v2" else "gptq" if version else None
