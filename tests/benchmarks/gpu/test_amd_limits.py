"""What is counted in machine code for AMD GPUs, and that docs/diary/gpu-floors.md holds it."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import amd_limits

ROOT = Path(__file__).parents[3]
SAID = """
VGPRs: 8
disasm:
BB0:
	v_add_f32_e32 v0, v1, v2                                      ; 1
	s_branch BB1                                                  ; 2
BB1:
	buffer_load_dwordx4 v[4:7], v3, s[4:7], 0 offen               ; 3
	v_fmac_f32_e32 v0, v4, v5                                     ; 4
	v_fmac_f32_e32 v0, v6, v7                                     ; 5
BB2:
	s_endpgm                                                      ; 6
"""


def test_the_loop_is_the_block_of_most_instructions() -> None:
    body = amd_limits.loop(SAID)
    assert body.count("v_fmac_f32") == 2
    assert "v_add_f32" not in body
    assert "s_endpgm" not in body


def test_mesas_compiler_for_amd_takes_the_shader_and_spills_no_register() -> None:
    if not Path(amd_limits.DRIVER).exists():
        pytest.skip("no RADV (Debian's mesa-vulkan-drivers)")
    for tokens in (1, 8):
        row = amd_limits.counted("navi21", "int4", amd_limits.formats()["int4"], tokens)
        assert row["spilled"] == 0
        assert row["shared_bytes"] <= 16384
        assert row["vector_instructions_a_kb"] > row["products_a_kb"] > 0


def test_the_page_holds_the_table_of_the_committed_record() -> None:
    record = json.loads((ROOT / "results/notes/amd-limits.json").read_text("utf-8"))
    table = amd_limits.markdown(record["counts"])
    assert table.count("\n") == 2 + 3 * 4 * 3
    assert table in (ROOT / "docs/diary/gpu-floors.md").read_text("utf-8")
