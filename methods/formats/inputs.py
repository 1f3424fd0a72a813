"""Inputs of compressed linears that are changed at run time: a property of the model.

They may be *turned*, multiplied by a Hadamard matrix whose inverse is in the weight (QuaRot,
arXiv:2404.00456), and then rounded to 8 bits, or one of the two.  Two kinds of rounding, as SLiM's
code has them (arXiv:2410.09615, appendix B, and its repository):
- `fp8`: one scale for the whole input of a call, found while it runs. E4M3 where the largest
  magnitude is below 488, else E5M2, and the largest magnitude becomes the type's largest number
  less 1. (488 is the code's constant; E4M3 ends at 448. Inputs are scaled either way, so it only
  chooses the type.)
- `int8`: symmetric, one scale for a token, or for `group_size` consecutive inputs of it.

Differs from the code: an input of zeros stays zero (the code's fp8 divides by zero), and integer
groups of small numbers keep a scale of their own (the code rounds a group to zero or one step of
1/127 where its largest magnitude is below 0.0127).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import hadamard

E4M3_BELOW = 488.0
INT8_LARGEST = 127  # what the largest of a group becomes


@dataclass(frozen=True)
class InputFormat:
    """What is done to an input.

    kind: how it is rounded, None if it is not
    group_size: of int8, consecutive inputs of one token that share a scale; None is the token
    turned: so many consecutive inputs are multiplied by a Hadamard matrix first; None for none
    """

    kind: Literal["fp8", "int8"] | None
    group_size: int | None = None
    turned: int | None = None

    def __post_init__(self) -> None:
        """Refuse kinds that are not known, and groups where there are none."""
        if self.kind not in ("fp8", "int8") and (self.kind or not self.turned):
            msg = f"inputs: kind '{self.kind}' is not fp8 or int8."
            raise ConfigError(msg)
        if self.turned is not None and hadamard.core(self.turned) is None:
            msg = f"inputs: no Hadamard matrix of {self.turned} rows is known here."
            raise ConfigError(msg)
        if self.group_size is not None and (self.kind != "int8" or self.group_size < 1):
            msg = f"inputs: group_size {self.group_size} does not go with {self.kind}."
            raise ConfigError(msg)

    @property
    def label(self) -> str:
        """'fp8 tensor', 'int8 token' or 'int8 group 128': what shares one scale; 'turned by 1536',
        or both.
        """
        words = [f"turned by {self.turned}"] if self.turned else []
        if self.kind == "fp8":
            words.append("fp8 tensor")
        elif self.kind:
            words.append(f"int8 group {self.group_size}" if self.group_size else "int8 token")
        return " ".join(words)

    @property
    def unrounded(self) -> "InputFormat | None":
        """The same without rounding; None if nothing else is done."""
        return InputFormat(None, turned=self.turned) if self.turned else None

    @property
    def is_of_call(self) -> bool:
        """Whether all that one call reads shares a scale: what it gives depends on all of it."""
        return self.kind == "fp8"

    def problem(self, shape: tuple[int, int]) -> str | None:
        """Why the inputs of a layer [out, in] cannot be rounded so, or None."""
        if self.group_size and shape[1] % self.group_size:
            return f"inputs.group_size {self.group_size} does not divide in = {shape[1]}"
        if self.turned and shape[1] % self.turned:
            return f"inputs.turned {self.turned} does not divide in = {shape[1]}"
        return None

    def rounded(self, x: Tensor) -> Tensor:
        """What a kernel with such inputs would multiply.  x: [..., in]  ->  the same, same type"""
        values = x.float()
        if self.turned:
            values = hadamard.turned(values, self.turned)
        if self.kind == "fp8":
            values = _fp8(values)
        elif self.kind:
            values = _int8(values, self.group_size)
        return values.to(x.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`; `from_json` reads it back."""
        data = {"kind": self.kind, "group_size": self.group_size, "label": self.label}
        return {**data, "turned": self.turned} if self.turned else data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "InputFormat":
        """Read what `to_json` wrote; RecordError if it is not that."""
        try:
            return InputFormat(data["kind"], data["group_size"], data.get("turned"))
        except (ConfigError, KeyError, TypeError) as error:
            msg = f"input format {data}: cannot be read ({error!r})."
            raise RecordError(msg) from error


def _fp8(x: Tensor) -> Tensor:
    largest = x.abs().amax()
    if not bool(largest > 0):
        return x
    dtype = torch.float8_e4m3fn if bool(largest < E4M3_BELOW) else torch.float8_e5m2
    top = torch.finfo(dtype).max - 1
    return (x / largest * top).to(dtype).float() / top * largest


def _int8(x: Tensor, group_size: int | None) -> Tensor:
    groups = x.reshape(*x.shape[:-1], -1, group_size or x.shape[-1])
    largest = groups.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / INT8_LARGEST, 1.0)
    return ((groups / scale).round() * scale).view(x.shape)
