"""A checkpoint of every layout as plain floats, and its layers beside the dense model's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness import families
from tests.harness.audit import llamas, written
from tests.harness.audit.llamas import LAYOUTS, VICTIM
from trinity.harness.audit import against, plain
from trinity.harness.audit.against import Error
from trinity.harness.audit.audit import audit
from trinity.harness.models.decoder import Decoder
from trinity.methods.errors import UnsupportedError

CPU = torch.device("cpu")


def _plain(path: Path, place: Path) -> Decoder:
    place.mkdir()
    plain.write(place, path)
    found = Decoder(place, torch.float32, CPU)
    found.check_weights()
    return found


def _read(decoder: Decoder, name: str) -> torch.Tensor:
    return decoder.reader.read(decoder.stored[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_floats_are_what_the_codes_stand_for_and_the_rest_is_copied(
    layout: str, tmp_path: Path
) -> None:
    path, values = llamas.save(layout, tmp_path / "model", llamas.dense_weights())
    made = _plain(path, tmp_path / "plain")
    for name, weight in llamas.dense_weights().items():
        expected = values.get(name.removesuffix(".weight"), weight)
        torch.testing.assert_close(_read(made, name), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_error_of_a_layer_is_that_of_its_values(layout: str, tmp_path: Path) -> None:
    path, values = llamas.save(layout, tmp_path / "model", llamas.dense_weights())
    dense = Decoder(llamas.save_dense(tmp_path / "dense"), torch.float32, CPU)
    errors = against.errors(audit(path), _plain(path, tmp_path / "plain"), dense)
    found = {error.layer: error for error in errors}
    expected = llamas.relative_error(llamas.dense_weights()[f"{VICTIM}.weight"], values[VICTIM])
    assert found[VICTIM].relative == pytest.approx(expected, rel=1e-6)
    assert found["lm_head"].relative == 0
    assert {found[name].form for name in llamas.linears()} == {found[VICTIM].form}
    assert "4" in found[VICTIM].form
    assert against.outliers(errors) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_of_plausible_numbers_that_are_the_wrong_ones_is_found(
    layout: str, tmp_path: Path
) -> None:
    path, _ = llamas.save(layout, tmp_path / "model", llamas.with_rows_exchanged())
    dense = Decoder(llamas.save_dense(tmp_path / "dense"), torch.float32, CPU)
    found = audit(path)
    assert found.faults == []  # by itself it looks as good as the others
    errors = against.errors(found, _plain(path, tmp_path / "plain"), dense)
    (fault,) = against.outliers(errors)
    assert fault.layer == VICTIM
    assert "its error against the dense weights is 1." in fault.what


@pytest.mark.parametrize(
    ("errors", "wrong"),
    [
        ([0.1, 0.1, 1.1, 0.1], [2]),  # ten times its neighbours
        ([0.5, 0.5, 1.2, 0.5], [2]),  # as far as zeros, and twice its neighbours, of two bits
        ([0.5, 0.5, 0.9, 0.5], []),
        ([0.0, 0.0, 0.0, 0.0], []),
        ([0.1, 0.1, 0.0, 0.1], []),  # more exact than others is no fault
        ([1.2, 1.3, 1.2, 1.1], []),  # of a program that moves scales between layers
        ([0.1, 1.1], []),  # one neighbour says nothing
    ],
)
def test_a_layer_is_an_outlier_beside_its_neighbours(errors: list[float], wrong: list[int]) -> None:
    names = [f"model.layers.{block}.mlp.up_proj" for block in range(len(errors))]
    listed = [Error(name, "int4", error) for name, error in zip(names, errors, strict=True)]
    assert [fault.layer for fault in against.outliers(listed)] == [names[at] for at in wrong]


def test_a_layer_of_fewer_bits_is_no_outlier_beside_layers_of_more() -> None:
    forms = ["int8", "int8", "int3", "int8"]
    errors = [0.01, 0.01, 0.3, 0.01]
    listed = [
        Error(f"model.layers.{at}.mlp.up_proj", form, error)
        for at, (form, error) in enumerate(zip(forms, errors, strict=True))
    ]
    assert against.outliers(listed) == []


def test_linears_that_keep_their_inputs_in_rows_are_turned(tmp_path: Path) -> None:
    """GPT-2's: what other programs pack is the matrix of the product."""
    families.save("gpt2", tmp_path / "model", n_embd=64, n_inner=64)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("h.0.attn.c_attn.weight"))
    grid = llamas.grid_of(tensors.pop(name).T)
    layer = name.removesuffix(".weight")
    tensors |= {f"{layer}.{part}": t for part, t in written.gptq_parts(*grid).items()}
    save_file({key: t.contiguous() for key, t in tensors.items()}, file, {"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = llamas.OF_GRID["gptq"][0]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made = _plain(tmp_path / "model", tmp_path / "plain")
    read = _read(made, "transformer.h.0.attn.c_attn.weight")
    torch.testing.assert_close(read, llamas.decoded(*grid).T, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_that_cannot_be_decoded_is_no_model(tmp_path: Path) -> None:
    path, _ = llamas.save("gptq", tmp_path / "model", llamas.dense_weights())
    tensors = load_file(path / "model.safetensors")
    tensors[f"{VICTIM}.scales"] = tensors[f"{VICTIM}.scales"] * float("nan")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(plain.UnreadableError, match=rf"{VICTIM} cannot be decoded .*NaN"):
        plain.write(tmp_path, path)


def test_rotations_at_run_time_are_refused(tmp_path: Path) -> None:
    path, _ = llamas.save("pack-quantized", tmp_path / "model", llamas.dense_weights())
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["transform_config"] = {"config_groups": {"u": {}}}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedError, match="transform_config"):
        plain.write(tmp_path, path)
