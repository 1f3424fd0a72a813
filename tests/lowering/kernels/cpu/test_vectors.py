"""lowering/kernels/cpu/vectors.py: products with sums of vectors from tables."""

import pytest
import torch

from tests.lowering.kernels.portable import for_any_processor
from tests.methods.samples import random_vectors
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.block import block_refusal
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour
from trinity.lowering.kernels.cpu.vectors import VectorStorage, rows_at_once, vector_kernels
from trinity.lowering.kernels.decoder_parts import BlockFormat, Heads
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.rows.row_storage import layout_of
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import Adapted, VectorCoded, WithOutliers, format_of

CPU = targets.get("llvm-cpu")
# Outputs that fill no workgroup, one that is full, a single one, one group.
WEIGHTS = {
    "two tables": lambda: random_vectors(37, 48, 8, 8, 2),
    "whole": lambda: random_vectors(64, 576, 8, 8, 2),
    "one table": lambda: random_vectors(1, 40, 8, 8, 1, torch.float32),
    "three of four inputs": lambda: random_vectors(33, 28, 8, 4, 3, torch.bfloat16),
    "of sixteen inputs": lambda: random_vectors(35, 16, 8, 16, 2),
}
ROWS = (1, 8)


@pytest.mark.parametrize("flavour", ["avx512-vnni", "avx2"])
def test_products_of_every_number_of_rows_are_those_of_float64(flavour: Flavour) -> None:
    """The flavour of AVX2 takes three rows at once, that of AVX-512 six; neither has intrinsics."""
    weights, made = [make() for make in WEIGHTS.values()], INSTRUCTIONS[flavour]
    storages = [VectorStorage(format_of(weight)) for weight in weights]
    kernels = [
        vector_kernels(f"of_{number}_{m}", stored, m, made)
        for number, stored in enumerate(storages)
        for m in ROWS
    ]
    text = with_kernels("module {\n}\n", kernels).replace("func.func private", "func.func")
    target = for_any_processor(CPU) if flavour == "avx2" else CPU
    module = Loaded(compile_text(text, target), CPU)
    for number, (weight, stored) in enumerate(zip(weights, storages, strict=True)):
        tensors = [module.put(tensor) for tensor in stored.pack(weight).values()]
        for m in ROWS:
            x = torch.randn(m, weight.shape[1])
            y = module.fetch(module.call(f"of_{number}_{m}", [module.put(x), *tensors]))
            assert relative_error(y, x.double() @ weight.dequantize().double().T) < 1e-6


def test_rows_at_once_leave_registers_for_what_is_multiplied() -> None:
    eight = VectorStorage(format_of(WEIGHTS["whole"]())).vectors
    wide = VectorStorage(format_of(WEIGHTS["of sixteen inputs"]())).vectors
    counts = {
        flavour: (rows_at_once(eight, made), rows_at_once(wide, made))
        for flavour, made in INSTRUCTIONS.items()
    }
    assert counts["avx512-vnni"] == (6, 6)
    assert counts["avx2"] == (3, 1)
    assert min(min(found) for found in counts.values()) >= 1


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_stored_comes_back_bit_for_bit(name: str) -> None:
    weight = WEIGHTS[name]()
    for stored in (storage_of(format_of(weight), CPU), layout_of(format_of(weight))):
        tensors = stored.pack(weight)
        shapes = {key: (tuple(of.shape), of.dtype) for key, of in tensors.items()}
        assert shapes == stored.shapes()
        again = stored.unpack(tensors)
        assert isinstance(again, VectorCoded)
        for part in ("codes", "codebooks", "scale"):
            assert torch.equal(getattr(again, part), getattr(weight, part))


def test_a_tile_holds_the_codes_of_four_outputs_group_by_group() -> None:
    weight = random_vectors(9, 24, 8, 8, 2)
    codes = VectorStorage(format_of(weight)).pack(weight)["vector_codes"]
    for output in range(9):
        for group in range(3):
            place = 2 * (output % 4)
            assert torch.equal(
                codes[output // 4, group, place : place + 2], weight.codes[output, group]
            )


@pytest.mark.parametrize("target", ["cuda", "rocm", "vulkan"])
def test_other_targets_refuse_them_by_name(target: str) -> None:
    weight_format = format_of(WEIGHTS["whole"]())
    with pytest.raises(UnsupportedError, match=f"2x8-bit vectors of 8: .* no kernel on {target}"):
        storage_of(weight_format, targets.get(target))


def test_what_no_module_holds_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"1x16-bit vectors of 8: .* codes of 8 bits"):
        storage_of(format_of(random_vectors(8, 16, 16, 8, 1)), CPU)
    with pytest.raises(UnsupportedError, match="vectors of 4, 8, 16 inputs"):
        storage_of(format_of(random_vectors(8, 18, 8, 6, 1)), CPU)
    base = random_vectors(8, 16, 8, 8, 1)
    columns = torch.zeros(8, 1, dtype=torch.int16)
    beside = [
        Adapted(base, torch.ones(8, 1), torch.ones(1, 16)),
        WithOutliers(base, columns, torch.ones(8, 1)),
    ]
    for weight in beside:
        with pytest.raises(UnsupportedError, match="without outliers, adapters or rounded inputs"):
            storage_of(format_of(weight), CPU)


def test_a_block_of_them_stays_in_the_graph() -> None:
    linears = {"self_attn.q_proj": format_of(random_vectors(64, 64, 8, 8, 2))}
    block = BlockFormat(64, Heads(2, 1, 32, 16, None, 32**-0.5), 1e-6, linears)
    found = block_refusal(block, INSTRUCTIONS["avx2"])
    assert found == "self_attn.q_proj: its weight is vectors of tables, which panels do not hold"
