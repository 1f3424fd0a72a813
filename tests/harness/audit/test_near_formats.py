"""Formats that are another one but for a name or a rule: clean, and with a planted fault."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.harness.audit import written
from tests.harness.audit.test_audit import _faults, _filled, _larger, _missing
from tests.harness.audit.written import FIRST, Written
from trinity.harness.audit.audit import audit, layout_of


def _gptq_v2() -> Written:
    made = written.folder("gptq")
    assert made.section is not None
    made.section["checkpoint_format"] = "gptq_v2"
    for name in written.LAYERS:  # the other version stores every zero point less one
        made.tensors[f"{name}.qzeros"] = made.tensors[f"{name}.qzeros"] + 0x11111111
    return made


def _naive_quantized() -> Written:
    made = written.folder("int-quantized")
    assert made.section is not None
    made.section["format"] = "naive-quantized"
    return made


def _fp4() -> Written:
    """The same tensors: which numbers its codes stand for is in them."""
    made = written.folder("nf4")
    assert made.section is not None
    made.section["bnb_4bit_quant_type"] = "fp4"
    made.tensors = {
        name.replace("bitsandbytes__nf4", "bitsandbytes__fp4"): tensor
        for name, tensor in made.tensors.items()
    }
    return made


@pytest.mark.parametrize(
    ("make", "plant", "said"),
    [
        (_gptq_v2, _larger("scales"), "neighbours"),
        (_gptq_v2, _filled("qweight", 0x77777777), "every code is 7"),
        (_naive_quantized, _filled("weight_scale", 0), "scales are zero"),
        (_naive_quantized, _filled("weight", 0), "every code is 0"),
        (_fp4, _larger("weight.quant_map"), "neighbours"),
        (_fp4, _missing("weight.absmax"), "weight.absmax is missing"),
    ],
)
def test_a_fault_is_found_in_formats_that_are_near_to_another(
    make: Callable[[], Written], plant: Callable[[Written], None], said: str, tmp_path: Path
) -> None:
    made = make()
    layout = layout_of(made.save(tmp_path / "clean"))
    (first,) = [matrix for matrix in layout.matrices() if matrix.name == FIRST]
    torch.testing.assert_close(layout.decode(first).values, made.values[FIRST])
    assert audit(tmp_path / "clean").faults == []
    plant(made)
    ((layer, what),) = _faults(made, tmp_path / "model")
    assert layer == FIRST
    assert said in what
