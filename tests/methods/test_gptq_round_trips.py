"""methods/gptq_checkpoint.py there and back: shapes, groups, versions and writers drawn at random.

Both directions are judged by `oracles/gptq_format.py`, one number at a time in float64.
"""

import random
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.samples import assert_same_weight
from tests.oracles import gptq_format
from trinity.methods.contract import StoredTensors
from trinity.methods.formats import Quantized
from trinity.methods.gptq_checkpoint import load, write_layer
from trinity.methods.gptq_settings import Version

SEEDS = range(40)


@dataclass(frozen=True)
class Drawn:
    """One layer of a checkpoint that another program might have written.

    said: `group_size` of the folder: -1 and more than there are inputs are one group
    writer: whose words the settings are in
    index: what g_idx holds: its groups, zeros, or nothing
    """

    bits: int
    out: int
    d_in: int
    said: int
    symmetric: bool
    ordered: bool
    version: Version
    writer: str
    index: str

    @property
    def size(self) -> int:
        """Inputs of a group; the last may have fewer."""
        return self.d_in if self.said == -1 else min(self.said, self.d_in)

    @property
    def groups(self) -> int:
        return ceil(self.d_in / self.size)


def draw(seed: int) -> Drawn:
    pick = random.Random(seed)
    d_in = pick.choice([32, 64, 96, 160])
    said = pick.choice([16, 32, 48, 64, 128, d_in, -1])
    ordered = pick.random() < 0.3 and 0 < said < d_in
    return Drawn(
        bits=pick.choice([2, 3, 4, 8]),
        out=pick.choice([32, 64]),
        d_in=d_in,
        said=said,
        symmetric=pick.random() < 0.5,
        ordered=ordered,
        version=pick.choice(["gptq", "gptq_v2"]),
        writer=pick.choice(["autogptq", "gptqmodel", "transformers"]),
        index="groups" if ordered else pick.choice(["groups", "zeros", "none"]),
    )


def settings(case: Drawn) -> dict[str, dict[str, Any]]:
    """The files of the folder, in the words of the program that writes it."""
    said: dict[str, Any] = {
        "bits": case.bits,
        "group_size": case.said,
        "sym": case.symmetric,
        "desc_act": case.ordered,
        "quant_method": "gptq",
    }
    if case.writer == "autogptq":
        # It has no second version; those who patched it for that say so.
        known = {} if case.version == "gptq" else {"checkpoint_format": case.version}
        return {"quantize_config.json": {**said, "damp_percent": 0.01, **known}}
    if case.writer == "transformers":
        known = {"format": case.version, "checkpoint_format": case.version, "dataset": None}
        return {"config.json": {"quantization_config": {**said, **known}}}
    version = {"format": case.version, "checkpoint_format": case.version, "method": "gptq"}
    whole = {**said, **version, "meta": {"quantizer": ["gptqmodel:5.0.0"]}, "lm_head": False}
    return {"quantize_config.json": whole, "config.json": {"quantization_config": whole}}


def numbers(case: Drawn) -> tuple[list[list[int]], list[list[int]], Tensor, list[int]]:
    """Codes [out, in], zero points [groups, out], scales [groups, out], group of every input."""
    top = 2**case.bits - 1
    codes = torch.randint(0, top + 1, (case.out, case.d_in)).tolist()
    zeros = torch.randint(1, top + 1, (case.groups, case.out))
    if case.symmetric:
        zeros = torch.full_like(zeros, 2 ** (case.bits - 1))
    scales = (torch.rand(case.groups, case.out) + 0.1).half()
    index = torch.arange(case.d_in) // case.size
    if case.ordered:
        index = index[torch.randperm(case.d_in)]
    return codes, zeros.tolist(), scales, index.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_any_writer_left_is_read_as_it_meant(seed: int) -> None:
    case = draw(seed)
    codes, zeros, scales, index = numbers(case)
    less = int(case.version == "gptq")
    qweight, qzeros = gptq_format.encode(codes, zeros, case.bits, less)
    tensors = {
        "fc.qweight": torch.from_numpy(qweight),
        "fc.qzeros": torch.from_numpy(qzeros),
        "fc.scales": scales,
    }
    if case.index != "none":
        stored = index if case.index == "groups" else [0] * case.d_in
        tensors["fc.g_idx"] = torch.tensor(stored, dtype=torch.int32)
    found = load(StoredTensors(tensors, settings(case)), None)["fc"]
    expected = gptq_format.decode(
        qweight, qzeros, scales.double().numpy(), index, case.bits, added=less
    )
    np.testing.assert_array_equal(found.dequantize().double().numpy(), expected)
    if case.symmetric:
        assert found.zero_point is None


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_written_is_the_weight_and_reads_back_bit_for_bit(seed: int) -> None:
    case = draw(seed)
    codes, zeros, scales, index = numbers(case)
    even = case.d_in % case.size == 0 and not case.ordered
    half = 2 ** (case.bits - 1)
    kind = torch.int8 if case.symmetric else torch.uint8
    weight = Quantized(
        (torch.tensor(codes) - (half if case.symmetric else 0)).to(kind),
        scales.T.contiguous(),
        None if case.symmetric else torch.tensor(zeros, dtype=torch.uint8).T.contiguous(),
        case.bits,
        None if even else torch.tensor(index, dtype=torch.int32),
    )
    parts = write_layer(weight, case.version)
    decoded = gptq_format.decode(
        parts["qweight"].numpy(),
        parts["qzeros"].numpy(),
        parts["scales"].double().numpy(),
        parts["g_idx"].tolist(),
        case.bits,
        added=int(case.version == "gptq"),
    )
    np.testing.assert_array_equal(weight.dequantize().double().numpy(), decoded)
    tensors = {f"fc.{name}": tensor for name, tensor in parts.items()}
    found = load(StoredTensors(tensors, settings(case)), None)["fc"]
    assert_same_weight(found, weight)
