import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.harness.audit import written
from tests.harness.audit.written import FIRST, SECOND, WRITERS, Written
from trinity.harness.audit import faults, shown, where
from trinity.harness.audit.audit import Audit, audit, layout_of
from trinity.harness.terminal.printing import laid_out
from trinity.methods.errors import ConfigError, UnsupportedError


def _faults(made: Written, folder: Path) -> list[tuple[str, str]]:
    return [(fault.layer, fault.what) for fault in audit(made.save(folder)).faults]


def _part(found: Audit, name: str) -> dict[str, float]:
    (row,) = [row for row in shown.data(found)["parts"] if row["part"] == name]
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("name", WRITERS)
def test_a_clean_folder_has_no_fault_and_its_values_are_what_was_written(
    name: str, tmp_path: Path
) -> None:
    made = written.folder(name)
    layout = layout_of(made.save(tmp_path / "model"))
    decoded = {matrix.name: layout.decode(matrix).values for matrix in layout.matrices()}
    for layer, values in made.values.items():
        read = decoded[layer]
        assert read is not None
        torch.testing.assert_close(read.float(), values, rtol=1e-6, atol=1e-7)
    assert audit(tmp_path / "model").faults == []


@pytest.mark.parametrize("name", WRITERS)
def test_bits_are_counted_from_the_bytes_of_the_tensors(name: str, tmp_path: Path) -> None:
    made = written.folder(name)
    found = audit(made.save(tmp_path / "model"))
    stored = sum(
        tensor.nbytes for key, tensor in made.tensors.items() if key.startswith("model.layers")
    )
    weights = len(written.LAYERS) * written.OUT * written.IN
    assert _part(found, "all layers")["bits_per_weight"] == stored * 8 / weights
    assert found.total_bytes == sum(tensor.nbytes for tensor in made.tensors.values())
    assert _part(found, "head")["bits_per_weight"] == 16
    assert _part(found, "embeddings")["weights"] == written.VOCABULARY * written.IN


def test_what_scales_add_is_told_from_what_codes_take(tmp_path: Path) -> None:
    found = audit(written.folder("awq").save(tmp_path / "model"))
    row = _part(found, "all layers")
    assert row["beside_bits_per_weight"] == (16 + 4) / written.GROUP
    assert row["bits_per_weight"] == 4 + (16 + 4) / written.GROUP


def _zero_scale(key: str) -> Callable[[Written], None]:
    def plant(made: Written) -> None:
        made.tensors[f"{FIRST}.{key}"].view(-1)[3] = 0

    return plant


def _filled(key: str, value: float) -> Callable[[Written], None]:
    def plant(made: Written) -> None:
        made.tensors[f"{FIRST}.{key}"] = torch.full_like(made.tensors[f"{FIRST}.{key}"], value)

    return plant


def _larger(key: str) -> Callable[[Written], None]:
    def plant(made: Written) -> None:
        made.tensors[f"{FIRST}.{key}"] = made.tensors[f"{FIRST}.{key}"] * 30

    return plant


def _missing(key: str) -> Callable[[Written], None]:
    def plant(made: Written) -> None:
        del made.tensors[f"{FIRST}.{key}"]

    return plant


def _shorter(key: str) -> Callable[[Written], None]:
    def plant(made: Written) -> None:
        made.tensors[f"{FIRST}.{key}"] = made.tensors[f"{FIRST}.{key}"][:-1]

    return plant


PLANTED = [
    ("dense", _filled("weight", 0), "every weight is 0"),
    ("dense", _filled("weight", float("nan")), "NaN or infinite"),
    ("dense", _larger("weight"), "neighbours"),
    ("dense", _missing("weight"), "lacks q_proj"),
    ("gptq", _filled("scales", 0), "scales are zero"),
    ("gptq", _filled("scales", float("inf")), "NaN or infinite"),
    ("gptq", _filled("scales", 1), "all 64 scales are 1"),
    ("gptq", _filled("qweight", 0x77777777), "every code is 7"),
    ("gptq", _filled("g_idx", 9), "g_idx names groups past"),
    ("gptq", _larger("scales"), "neighbours"),
    ("gptq", _missing("scales"), "scales is missing"),
    ("gptq", _missing("qweight"), "qweight is missing"),
    ("gptq", _shorter("qzeros"), "qzeros is [1, 4], expected [2, 4]"),
    ("awq", _filled("scales", 0), "scales are zero"),
    ("awq", _filled("qweight", 0), "every code is 0"),
    ("awq", _larger("scales"), "neighbours"),
    ("awq", _missing("qzeros"), "qzeros is missing"),
    ("awq", _shorter("scales"), "scales is [1, 32], expected [2, 32]"),
    ("pack-quantized", _filled("weight_scale", 0), "scales are zero"),
    ("pack-quantized", _zero_scale("weight_scale"), "1 of 64 scales are zero"),
    ("pack-quantized", _filled("weight_packed", 0), "every code is -8"),
    ("pack-quantized", _larger("weight_scale"), "neighbours"),
    ("pack-quantized", _missing("weight_shape"), "weight_shape is missing"),
    ("pack-quantized", _missing("weight_packed"), "weight_packed is missing"),
    ("pack-quantized", _shorter("weight_zero_point"), "weight_zero_point is [3, 2]"),
    ("int-quantized", _filled("weight", 0), "every code is 0"),
    ("int-quantized", _filled("weight_scale", float("nan")), "NaN or infinite"),
    ("int-quantized", _larger("weight_scale"), "neighbours"),
    ("int-quantized", _missing("weight_scale"), "weight_scale is missing"),
    ("nf4", _filled("weight", 0x77), "every code is 7"),
    ("nf4", _filled("weight.nested_absmax", float("nan")), "NaN or infinite"),
    ("nf4", _larger("weight.quant_map"), "neighbours"),
    ("nf4", _missing("weight.absmax"), "weight.absmax is missing"),
    ("nf4", _shorter("weight.absmax"), "weight.absmax is [31], expected [32]"),
]


@pytest.mark.parametrize(
    ("name", "plant", "said"),
    [pytest.param(*row, id=f"{row[0]}: {row[2]}") for row in PLANTED],
)
def test_a_planted_fault_is_found_where_it_is_and_nowhere_else(
    name: str, plant: Callable[[Written], None], said: str, tmp_path: Path
) -> None:
    made = written.folder(name)
    plant(made)
    found = _faults(made, tmp_path / "model")
    assert any(said in what for _, what in found), found
    assert {layer for layer, _ in found} <= {FIRST, FIRST.rpartition(".")[0]}


def test_an_expert_that_was_never_touched_is_found(tmp_path: Path) -> None:
    made = written.folder("dense")
    generator = torch.Generator().manual_seed(7)
    for block in range(2):
        for expert in range(6):
            weight = torch.randn(8, 16, generator=generator) * 0.02
            made.tensors[f"model.layers.{block}.mlp.experts.{expert}.w1.weight"] = weight
    name = "model.layers.1.mlp.experts.4.w1"
    made.tensors[f"{name}.weight"] /= 50
    ((layer, what),) = _faults(made, tmp_path / "model")
    assert layer == name
    assert "neighbours" in what


def test_experts_in_one_tensor_are_judged_one_by_one(tmp_path: Path) -> None:
    made = written.folder("dense")
    stack = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(8))
    stack[2] = 0
    made.tensors["model.layers.0.mlp.experts.gate_up_proj"] = stack
    found = _faults(made, tmp_path / "model")
    assert found == [("model.layers.0.mlp.experts.gate_up_proj.2", "every weight is 0")]


def test_a_block_that_is_not_there_is_found(tmp_path: Path) -> None:
    made = written.folder("gptq")
    made.tensors = {
        name: tensor for name, tensor in made.tensors.items() if ".layers.2." not in name
    }
    assert _faults(made, tmp_path / "model") == [("block 2", "holds no matrix at all")]


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000])
def test_what_is_no_number_of_a_block_is_a_name(number: str) -> None:
    names = [f"layers.0.{part}" for part in ("up", "down")]
    assert faults.absent([*names, f"layers.{number}.up"], 1) == []


@pytest.mark.parametrize(("name", "key"), [("gptq", "bits"), ("pack-quantized", "num_bits")])
def test_another_number_of_bits_than_the_configuration_says_is_a_fault(
    name: str, key: str, tmp_path: Path
) -> None:
    made = written.folder(name)
    assert made.section is not None
    made.section = json.loads(json.dumps(made.section).replace(f'"{key}": 4', f'"{key}": 8'))
    found = _faults(made, tmp_path / "model")
    assert sum("4 bits a code" in what for _, what in found) == len(written.LAYERS)


def test_a_configuration_that_quantizes_nothing_is_a_fault(tmp_path: Path) -> None:
    made = written.folder("dense")
    made.section = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    found = _faults(made, tmp_path / "model")
    assert found == [
        ("the checkpoint", "claims 4 bits, group 128, and no layer is quantized"),
    ]


def test_a_tensor_that_the_index_names_and_no_file_holds_is_a_fault(tmp_path: Path) -> None:
    made = written.folder("dense")
    folder = made.save(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = [*made.tensors, "model.layers.1.mlp.down_proj.weight"]
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert [fault.layer for fault in audit(folder).faults] == [names[-1]]


def test_layers_left_dense_are_listed_and_no_fault(tmp_path: Path) -> None:
    made = written.folder("gptq")
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del made.tensors[f"{SECOND}.{part}"]
    made.tensors[f"{SECOND}.weight"] = made.values[SECOND].half()
    found = audit(made.save(tmp_path / "model"))
    assert [matrix.name for matrix in found.left_dense] == [SECOND]
    assert found.faults == []


def test_a_clean_gguf_has_no_fault_and_its_values_are_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = written.gguf(path)
    layout = layout_of(path)
    decoded = {matrix.name: layout.decode(matrix).values for matrix in layout.matrices()}
    for name, expected in values.items():
        read = decoded[name]
        assert read is not None
        torch.testing.assert_close(read, expected)
    found = audit(where.located(tmp_path))
    assert (found.faults, found.claim) == ([], "Q4_0")
    row = _part(found, "all layers")
    assert (row["bits_per_weight"], row["beside_bits_per_weight"]) == (4.5, 0.5)


@pytest.mark.parametrize(
    ("scale", "said"),
    [(0.0, "scales are zero"), (float("nan"), "NaN or infinite"), (1.0, "neighbours")],
)
def test_a_planted_fault_in_a_gguf_is_found(scale: float, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written.gguf(path, lambda block: scale if block == 1 else 0.02)
    ((layer, what),) = [(fault.layer, fault.what) for fault in audit(path).faults]
    assert layer == "blk.1.attn_q"
    assert said in what


def test_a_gguf_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written.gguf(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ConfigError, match="damaged or cut short"):
        audit(path)


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "hqq"},
        {"quant_method": "awq", "bits": 4, "version": "marlin"},
        {"quant_method": "compressed-tensors", "format": "marlin-24"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ],
)
def test_a_layout_that_is_not_read_is_refused_by_name(
    section: dict[str, object], tmp_path: Path
) -> None:
    made = written.folder("dense")
    made.section = section
    with pytest.raises(UnsupportedError, match="Read"):
        audit(made.save(tmp_path / "model"))


@pytest.mark.parametrize("name", WRITERS)
def test_the_tables_fit_eighty_columns(name: str, tmp_path: Path) -> None:
    made = written.folder(name)
    made.tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(8, 16)
    for grid in shown.grids(audit(made.save(tmp_path / "model"))):
        assert max(map(len, laid_out(grid.filled(), 80))) <= 80


@pytest.mark.parametrize("crossing", [True, False])
def test_codes_of_three_bits_are_read_whether_they_cross_words_or_not(
    crossing: bool, tmp_path: Path
) -> None:
    made = written.folder("pack-quantized")
    made.section = json.loads(json.dumps(made.section).replace('"num_bits": 4', '"num_bits": 3'))
    codes = torch.randint(0, 8, (written.OUT, written.IN))
    each = 32 * 8 if crossing else 10  # codes that share words
    for name in written.LAYERS:
        rows = []
        for row in codes.tolist():
            packed = b""
            for at in range(0, len(row), each):
                part = row[at : at + each]
                number = sum(code << (3 * place) for place, code in enumerate(part))
                packed += number.to_bytes(4 * -(-len(part) * 3 // 32), "little")
            rows.append(torch.frombuffer(bytearray(packed), dtype=torch.int32))
        del made.tensors[f"{name}.weight_zero_point"]
        made.tensors[f"{name}.weight_packed"] = torch.stack(rows)
    layout = layout_of(made.save(tmp_path / "model"))
    (first,) = [matrix for matrix in layout.matrices() if matrix.name == FIRST]
    read = layout.decode(first).codes
    assert first.form == "int3 group 32"
    assert read is not None
    assert torch.equal(read.long(), codes - 4)


def _floats(form: str) -> Written:
    made = written.folder("pack-quantized")
    made.section = {"quant_method": "compressed-tensors", "format": form}
    made.tensors = {name: t for name, t in made.tensors.items() if ".layers." not in name}
    return made


def test_nvfp4_is_read_with_both_of_its_scales(tmp_path: Path) -> None:
    made = _floats("nvfp4-pack-quantized")
    steps = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    generator = torch.Generator().manual_seed(9)
    for name in written.LAYERS:
        codes = torch.randint(0, 16, (4, 32), generator=generator)
        scales = torch.randint(1, 9, (4, 2), generator=generator).to(torch.float8_e4m3fn)
        made.tensors |= {
            f"{name}.weight_packed": (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8),
            f"{name}.weight_scale": scales,
            f"{name}.weight_global_scale": torch.tensor([50.0]),
        }
        values = [
            [steps[code] * float(scales[row, at // 16]) / 50 for at, code in enumerate(line)]
            for row, line in enumerate(codes.tolist())
        ]
        made.values[name] = torch.tensor(values)
    layout = layout_of(made.save(tmp_path / "model"))
    decoded = {matrix.name: layout.decode(matrix).values for matrix in layout.matrices()}
    for name in written.LAYERS:
        torch.testing.assert_close(decoded[name], made.values[name])
    assert audit(tmp_path / "model").faults == []
    made.tensors[f"{FIRST}.weight_scale"] = torch.zeros(4, 2).to(torch.float8_e4m3fn)
    assert _faults(made, tmp_path / "model") == [(FIRST, "8 of 8 scales are zero")]


def test_float8_is_read_with_its_scale(tmp_path: Path) -> None:
    made = _floats("float-quantized")
    generator = torch.Generator().manual_seed(10)
    for name in written.LAYERS:
        codes = torch.randn(8, 16, generator=generator).to(torch.float8_e4m3fn)
        scales = torch.rand(8, 1, generator=generator) + 1
        made.tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": scales}
        made.values[name] = codes.float() * scales
    layout = layout_of(made.save(tmp_path / "model"))
    decoded = {matrix.name: layout.decode(matrix).values for matrix in layout.matrices()}
    for name in written.LAYERS:
        torch.testing.assert_close(decoded[name], made.values[name])
    assert audit(tmp_path / "model").faults == []
    del made.tensors[f"{FIRST}.weight_scale"]
    assert _faults(made, tmp_path / "model") == [(FIRST, "weight_scale is missing")]
