"""methods/slope.py: the released layout is read as SLoPe's own layers would compute it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles import slope as oracle
from trinity.methods import registry
from trinity.methods.conformance import check
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, Dense, Sparse, bits_per_weight
from trinity.methods.slope import SLOPE, SlopeConfig, load


def sparse_weight(shape: tuple[int, int], n: int = 2, m: int = 4) -> Tensor:
    """Random numbers, n of every m at random places.  -> float32 [out, in]"""
    out, d_in = shape
    order = torch.rand(out, d_in // m, m).argsort(-1)
    return torch.randn(shape) * (order < n).view(shape)


def layer(
    out: int = 8, d_in: int = 16, rank: int = 3, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """One layer of a checkpoint, as the accuracy code saves it."""
    return {
        "encoder.0.fc.weight": sparse_weight((out, d_in)).to(dtype),
        "encoder.0.fc.bias": torch.randn(out).to(dtype),
        "encoder.0.fc.lora_left": torch.randn(d_in, rank).to(dtype),
        "encoder.0.fc.lora_right": torch.randn(rank, out).to(dtype),
    }


def output(weight: Tensor, x: Tensor) -> np.ndarray:
    return (x.double() @ weight.double().T).numpy()


def test_the_weight_computes_what_the_training_layer_computes() -> None:
    tensors = layer()
    x = torch.randn(5, 16)
    W, left, right = (
        tensors[f"encoder.0.fc.{part}"].double().numpy()
        for part in ("weight", "lora_left", "lora_right")
    )
    expected = oracle.layer_output(x.double().numpy(), W, left, right, scale=1 / 3)
    found = load(tensors, SlopeConfig())["encoder.0.fc"]
    np.testing.assert_allclose(output(found.dequantize(), x), expected, rtol=1e-5, atol=1e-6)


def test_the_merged_path_prunes_the_left_factor_and_has_no_division() -> None:
    tensors = layer(rank=4)
    left = sparse_weight((4, 16)).T  # 2:4 along the inputs already, so nothing is left to prune
    tensors["encoder.0.fc.lora_left"] = left
    W, right = (tensors[f"encoder.0.fc.{part}"] for part in ("weight", "lora_right"))
    x = torch.randn(5, 16)
    expected = oracle.layer_output(
        *(t.double().numpy() for t in (x, W, left, right)),
        scale=1.0,
    )
    found = load(tensors, SlopeConfig(path="merged"))["encoder.0.fc"]
    np.testing.assert_allclose(output(found.dequantize(), x), expected, rtol=1e-5, atol=1e-6)


def test_the_merged_path_keeps_the_largest_two_of_four_inputs_of_every_left_column() -> None:
    tensors = layer(rank=2)
    left = tensors["encoder.0.fc.lora_left"]
    found = load(tensors, SlopeConfig(path="merged"))["encoder.0.fc"]
    assert isinstance(found, Adapted)
    for k in range(2):
        best = oracle.best_columns(left[:, k].double().numpy(), 2, 4)
        assert float(found.A[k].abs().sum()) == pytest.approx(best)


def test_dividing_the_right_factor_by_the_rank_turns_a_merged_checkpoint_into_a_trained_one() -> (
    None
):
    tensors = layer(rank=4)
    tensors["encoder.0.fc.lora_left"] = sparse_weight((4, 16)).T
    merged = dict(tensors)
    merged["encoder.0.fc.lora_right"] = tensors["encoder.0.fc.lora_right"] / 4
    one = load(tensors, SlopeConfig())["encoder.0.fc"].dequantize()
    other = load(merged, SlopeConfig(path="merged"))["encoder.0.fc"].dequantize()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_weights_are_read_bit_for_bit_in_their_own_type(dtype: torch.dtype) -> None:
    tensors = layer(dtype=dtype)
    found = load(tensors, SlopeConfig())["encoder.0.fc"]
    assert isinstance(found, Adapted)
    assert isinstance(found.base, Sparse)
    assert isinstance(found.base.values, Dense)
    assert torch.equal(found.base.values.values, tensors["encoder.0.fc.weight"])
    assert found.A.dtype == dtype


def test_absent_adapter_keys_mean_no_adapter() -> None:
    tensors = {name: t for name, t in layer().items() if "lora" not in name}
    found = load(tensors, SlopeConfig())["encoder.0.fc"]
    assert isinstance(found, Sparse)
    assert torch.equal(found.dequantize(), tensors["encoder.0.fc.weight"])


@pytest.mark.parametrize("absent", ["lora_left", "lora_right"])
def test_half_an_adapter_is_an_error(absent: str) -> None:
    tensors = layer()
    del tensors[f"encoder.0.fc.{absent}"]
    with pytest.raises(ConfigError, match=rf"encoder\.0\.fc: .*no {absent}"):
        load(tensors, SlopeConfig())


def test_factors_that_do_not_fit_each_other_are_an_error() -> None:
    tensors = layer()
    tensors["encoder.0.fc.lora_right"] = torch.zeros(2, 8)
    with pytest.raises(ConfigError, match=r"lora_left \[16, 3\] and lora_right \[2, 8\]"):
        load(tensors, SlopeConfig())


def test_an_adapter_without_its_layers_weight_is_an_error() -> None:
    tensors = layer() | {
        "other.lora_left": torch.randn(16, 3),
        "other.lora_right": torch.randn(3, 8),
    }
    with pytest.raises(ConfigError, match=r"other: has lora_left but no weight"):
        load(tensors, SlopeConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_cannot_be_kept_is_named(dtype: torch.dtype) -> None:
    tensors = {"fc.weight": sparse_weight((8, 16)).to(dtype)}
    if dtype == torch.float32:
        tensors["fc.weight"][0, 0:2] = torch.inf
        tensors["fc.weight"][0, 2:4] = 0
    with pytest.raises(ConfigError, match=r"slope: fc: values: (holds NaN|expected float32)"):
        load(tensors, SlopeConfig())


def test_dense_matrices_norms_and_integers_are_left_alone() -> None:
    tensors = layer() | {
        "embeddings.word.weight": torch.randn(30, 16),
        "embeddings.odd.weight": torch.randn(30, 15),
        "norm.weight": torch.zeros(16),
        "position_ids": torch.arange(16)[None],
    }
    assert set(load(tensors, SlopeConfig())) == {"encoder.0.fc"}


def test_a_dense_layer_with_an_adapter_is_read_as_one() -> None:
    tensors = layer()
    tensors["first.weight"] = torch.randn(8, 16)
    tensors["first.lora_left"] = torch.randn(16, 2)
    tensors["first.lora_right"] = torch.randn(2, 8)
    found = load(tensors, SlopeConfig())["first"]
    assert isinstance(found, Adapted)
    assert isinstance(found.base, Dense)


def test_one_damaged_group_is_an_error_that_names_layer_row_and_inputs() -> None:
    tensors = layer()
    tensors["encoder.0.fc.weight"][5, 8:12] = 1.0
    with pytest.raises(ConfigError, match=r"encoder\.0\.fc.*row 5, inputs 8\.\.11"):
        load(tensors, SlopeConfig())


def test_a_layer_with_a_pattern_of_its_own_is_checked_against_that() -> None:
    tensors = layer(rank=1)
    tensors["encoder.1.fc.weight"] = sparse_weight((8, 16), 2, 8)
    found = load(tensors, SlopeConfig(layers={"encoder.1.*": NM(2, 8)}))
    weight = found["encoder.1.fc"]
    assert isinstance(weight, Sparse)
    assert weight.pattern == NM(2, 8)
    with pytest.raises(ConfigError, match=r"encoder\.0\.fc.*50% of its entries are zero.*not 2:8"):
        load(tensors, SlopeConfig(layers={"encoder.*": NM(2, 8)}))


def test_a_layer_named_dense_is_not_checked() -> None:
    tensors = layer()
    tensors["encoder.1.fc.weight"] = sparse_weight((8, 16))
    tensors["encoder.1.fc.weight"][0, 0:4] = 1.0
    assert "encoder.1.fc" not in load(tensors, SlopeConfig(layers={"encoder.1.*": "dense"}))


def test_a_kept_weight_that_is_exactly_zero_changes_nothing() -> None:
    """The one ambiguous case: the mask may be any that holds the others."""
    W = torch.zeros(2, 8)
    W[0, 3] = 5.0
    W[1, 4:6] = torch.tensor([1.0, 2.0])
    weight = load({"fc.weight": W}, SlopeConfig())["fc"]
    assert torch.equal(weight.dequantize(), W)


def test_two_of_four_is_stored_in_half_the_values_and_two_index_bits_each() -> None:
    tensors = {"fc.weight": sparse_weight((8, 64)).bfloat16()}
    assert bits_per_weight(load(tensors, SlopeConfig())["fc"]) == 0.5 * (16 + 2)


def test_a_dense_checkpoint_is_an_error() -> None:
    with pytest.raises(ConfigError, match="none of the 1 tensors is a weight that obeys 2:4"):
        load({"fc.weight": torch.randn(8, 16)}, SlopeConfig())


def test_unstructured_patterns_are_refused() -> None:
    with pytest.raises(ConfigError, match="SLoPe trains N:M weights, not 50%"):
        registry.configure("slope", {"pattern": "50%"})
    config = registry.configure("slope", {"layers": {"*": "50%"}})
    assert isinstance(config, SlopeConfig)
    with pytest.raises(ConfigError, match="SLoPe trains N:M weights, not 50%"):
        load(layer(), config)


def test_options_are_the_same_after_they_were_written_and_read() -> None:
    config = SlopeConfig(layers={"a.*": NM(1, 4), "b": "dense"})
    assert config.model_dump(mode="json")["layers"] == {"a.*": "1:4", "b": "dense"}
    assert SlopeConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_source_keeps_the_contract_on_its_own_layout() -> None:
    assert check(SLOPE, tensors=layer(dtype=torch.bfloat16)) == []


def test_the_result_does_not_share_memory_with_the_file() -> None:
    tensors = layer()
    found = load(tensors, SlopeConfig())["encoder.0.fc"]
    before = found.dequantize()
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(found.dequantize(), before)
