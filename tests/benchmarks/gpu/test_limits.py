"""What is counted in a disassembly, and that docs/diary/gpu-floors.md holds the table of it."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import limits

ROOT = Path(__file__).parents[3]
# A loop that skips a product at the end of a row, and does one of two things, the first shorter.
TEXT = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR6][R4.64] ;
        /*0020*/                   LDS.128 R12, [R23] ;
        /*0030*/               @P2 BRA `(.L_x_2) ;
        /*0040*/                   LOP3.LUT R1, R2, 0xf000f, R3, 0xea, !PT ;
        /*0050*/                   HMMA.16816.F32 R24, R24, R8, RZ ;
.L_x_2:
        /*0060*/              @!P1 BRA `(.L_x_3) ;
        /*0070*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0080*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*0090*/                   IADD3 R1, R1, 0x2, RZ ;
        /*00a0*/                   IADD3 R1, R1, 0x3, RZ ;
        /*00b0*/                   IADD3 R1, R1, 0x4, RZ ;
.L_x_4:
        /*00c0*/               @P0 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
"""


def test_the_loop_of_the_products_is_found_and_known_by_what_it_unpacks() -> None:
    code = limits.instructions(TEXT)
    assert len(code) == 14
    (loop,) = limits.mma_loops(code)
    assert (loop[0].word, loop[-1].target) == ("LDGSTS.E.BYPASS.128", ".L_x_1")
    assert limits.kind_of(loop) == ("CODES", 16)


def test_the_shortest_way_does_all_the_work() -> None:
    (loop,) = limits.mma_loops(limits.instructions(TEXT))
    assert len(loop) == 12
    assert limits.way(loop) == (3, 9)  # the product, the copy and the read; not the three additions


def test_a_unit_is_known_by_its_copies() -> None:
    (loop,) = limits.mma_loops(limits.instructions(TEXT))
    found = limits.per_kb(loop, size=2048, copies=1)
    assert found == {"instructions": 6, "products": 0.5, "shared_bytes": 512}


@pytest.mark.parametrize(("registers", "expected"), [(64, 32), (106, 16), (128, 16), (129, 0)])
def test_warps_are_limited_by_registers_first(registers: int, expected: int) -> None:
    assert limits.warps(registers, limits.GPUS["sm_90"]) == expected


def test_the_page_holds_the_table_of_the_committed_record() -> None:
    record = json.loads((ROOT / "results/notes/cuda-limits.json").read_text("utf-8"))
    table = limits.markdown(record)
    assert table.count("\n") == 2 + 3 * 2 * 3
    assert table in (ROOT / "docs/diary/gpu-floors.md").read_text("utf-8")
