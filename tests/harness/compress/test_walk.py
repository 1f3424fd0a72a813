import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from trinity.harness.checkpoints.block import LAYERS, layer_report, load_block
from trinity.harness.compress import hidden, plan, walk
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import (
    STATISTICS,
    BlockTask,
    LayerStats,
    MethodConfig,
    Statistic,
)
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Sparse

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))
WANDA = [{"method": "wanda", "pattern": "2:4"}]


def _walk(
    folder: Path,
    store: Path,
    steps: list[dict[str, Any]],
    ids: Tensor | None = IDS,
    order: str = "block",
) -> tuple[Decoder, list[Path]]:
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    spec = CompressSpec.model_validate({"steps": steps, "order": order})
    made = plan.make(spec, decoder.layer_shapes())
    return decoder, Walk(decoder, made, ids, StageStore(store), {}).run(lambda done, of: None)


def _inputs_of(model: Any, layers: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Inputs of some linears in a whole-model forward.  -> [sequences, seq, in] each"""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(
                args[0].reshape(1, -1, args[0].shape[-1])  # OPT flattens sequences before its MLP
            )
        )
        for name in layers
    ]
    with torch.no_grad():
        for sequence in ids:
            model(input_ids=sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(inputs) for name, inputs in seen.items()}


def _mask(weight: CompressedWeight) -> Tensor:
    assert isinstance(weight, Sparse)
    return weight.mask


@pytest.mark.parametrize("family", families.CONFIGS)
def test_statistics_come_from_blocks_already_compressed(tmp_path: Path, family: str) -> None:
    """Oracle: compress block by block in the whole model, which is loaded at once and forwarded
    whole.
    """
    model = families.save(family, tmp_path / "model")
    decoder, blocks = _walk(tmp_path / "model", tmp_path / "store", WANDA)
    for index, folder in enumerate(blocks):
        names = decoder.layer_names(index)
        inputs = _inputs_of(model, names, IDS)
        for name, weight in load_block(folder).items():
            W = weight_of(model.get_submodule(name)).double()
            s = inputs[name].double().square().sum(1).mean(0)
            scores = (W.square() * s).view(W.shape[0], -1, 4)
            kept = torch.where(_mask(weight).view_as(scores), scores, 0).sum(-1)
            best = scores.topk(2).values.sum(-1)
            # Sums, not masks: inputs that are always zero tie.
            assert torch.allclose(kept, best, rtol=1e-6, atol=1e-12), name
        for name, weight in load_block(folder).items():
            linear = model.get_submodule(name)
            kept = weight.dequantize()
            transposed = linear.weight.shape != kept.shape or family == "gpt2"
            linear.weight.data = kept.t().contiguous() if transposed else kept


def test_the_model_is_left_without_weights_hooks_or_patches(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    decoder, _ = _walk(tmp_path / "model", tmp_path / "store", WANDA)
    assert all("forward" not in block.__dict__ for block in decoder.blocks)
    assert not any(module._forward_pre_hooks for module in decoder.model.modules())
    assert all(p.is_meta for block in decoder.blocks for p in block.parameters())
    assert not decoder.model.training


def test_only_one_block_has_weights_at_a_time(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    loaded: list[int] = []

    def count(done: int, of: int) -> None:
        loaded.append(
            sum(any(not p.is_meta for p in block.parameters()) for block in decoder.blocks)
        )

    original = decoder.load

    def load(path: str) -> None:
        count(0, 0)
        original(path)
        count(0, 0)

    decoder.load = load  # type: ignore[method-assign]  # counts around the real one
    made = plan.make(CompressSpec.model_validate({"steps": WANDA}), decoder.layer_shapes())
    Walk(decoder, made, IDS, StageStore(tmp_path / "store"), {}).run(count)
    assert max(loaded) == 1


def test_hidden_states_in_a_file_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    _, expected = _walk(tmp_path / "model", tmp_path / "store", WANDA)
    monkeypatch.setattr(hidden, "SHARE_IN_MEMORY", 0)
    _, found = _walk(tmp_path / "model", tmp_path / "other", WANDA)
    for one, other in zip(expected, found, strict=True):
        for name in ("block.safetensors", "layers.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_the_weights_of_linears_with_one_input_are_in_memory_together_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    read: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def wide(module: Any) -> Tensor:
        weight = weight_of(module).clone()
        read.append(weakref.ref(weight))
        return weight

    def report(*given: Any) -> dict[str, Any]:
        alive.append(sum(of() is not None for of in read))
        return layer_report(*given)

    monkeypatch.setattr(walk, "weight_of", wide)
    monkeypatch.setattr(walk, "layer_report", report)
    decoder, blocks = _walk(tmp_path / "model", tmp_path / "store", WANDA)
    assert len(read) == len(alive) == len(decoder.layer_names(0)) * len(blocks)
    assert max(alive) == max(map(len, decoder.family.groups)) == 3


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    steps = [{"method": "slim", "pattern": "2:4"}]
    _, first = _walk(tmp_path / "model", tmp_path / "one", steps)
    _, second = _walk(tmp_path / "model", tmp_path / "two", steps)
    for a, b in zip(first, second, strict=True):
        assert (a / "block.safetensors").read_bytes() == (b / "block.safetensors").read_bytes()
        assert (a / "layers.json").read_bytes() == (b / "layers.json").read_bytes()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_block_is_made_again_with_the_same_bytes(tmp_path: Path, lost: int) -> None:
    families.save("gpt2", tmp_path / "model")
    steps = [{"method": "slim", "pattern": "2:4"}]
    _, blocks = _walk(tmp_path / "model", tmp_path / "store", steps)
    before = [(folder / "block.safetensors").read_bytes() for folder in blocks]
    (blocks[lost] / "block.safetensors").write_bytes(b"damaged")
    _, again = _walk(tmp_path / "model", tmp_path / "store", steps)
    assert again == blocks
    assert [(folder / "block.safetensors").read_bytes() for folder in again] == before


def test_layer_errors_are_in_the_hessian_norm(tmp_path: Path) -> None:
    model = families.save("llama", tmp_path / "model")
    decoder, blocks = _walk(tmp_path / "model", tmp_path / "store", WANDA)
    report = (blocks[0] / "layers.json").read_text()
    names = decoder.layer_names(0)
    inputs = _inputs_of(model, names, IDS)
    for name, found in json.loads(report).items():
        W = weight_of(model.get_submodule(name)).double()
        X = inputs[name].flatten(0, 1).double()
        delta = load_block(blocks[0])[name].dequantize().double() - W
        expected = float((X @ delta.T).norm() / (X @ W.T).norm())
        assert found["norm"] == "hessian"
        assert found["relative_error"] == pytest.approx(expected, rel=1e-4)


def test_what_a_method_says_of_a_layer_is_in_its_report(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    _, blocks = _walk(tmp_path / "model", tmp_path / "store", [*WANDA, {"method": "optima"}])
    for folder in blocks:
        for found in json.loads((folder / "layers.json").read_text()).values():
            (said,) = found["diagnostics"]
            assert said["method"] == "optima"
            assert said["error_at_least"] <= said["error_after"] < said["error_before"]
            assert found["relative_error"] == pytest.approx(said["error_after"], rel=1e-4)
    _, silent = _walk(tmp_path / "model", tmp_path / "store", WANDA)
    for found in json.loads((silent[0] / "layers.json").read_text()).values():
        assert found["diagnostics"] == []


def test_without_calibration_the_error_is_the_plain_norm(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    steps = [{"method": "magnitude", "pattern": "2:4"}]
    _, blocks = _walk(tmp_path / "model", tmp_path / "store", steps, None)
    assert '"norm": "frobenius"' in (blocks[0] / "layers.json").read_text()


def test_infinite_activations_name_the_layer(tmp_path: Path) -> None:
    model = families.save("llama", tmp_path / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e20)
        model.model.layers[0].mlp.gate_proj.weight.mul_(1e20)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.down_proj.*infinity"):
        _walk(tmp_path / "model", tmp_path / "store", WANDA)


class _Rescale:
    """Doubles every weight of a block and checks that it can run the block."""

    name = "rescale"
    paper = "test"
    config = MethodConfig
    needs = Statistic.NOTHING

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def compress_block(
        self, task: BlockTask, config: MethodConfig
    ) -> Mapping[str, CompressedWeight]:
        self.outputs.append(task.forward(task.weights, task.inputs[0]))
        return {name: Dense(2 * W) for name, W in task.weights.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_block_method_sees_the_whole_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model = families.save(family, tmp_path / "model")
    method = _Rescale()
    monkeypatch.setattr(registry, "get", lambda name: method)
    _, blocks = _walk(tmp_path / "model", tmp_path / "store", [{"method": "rescale"}])
    with torch.no_grad():
        expected = model(IDS[:1], output_hidden_states=True).hidden_states[1][0]
    assert torch.allclose(method.outputs[0], expected, atol=1e-5)
    for name, weight in load_block(blocks[0]).items():
        assert torch.equal(weight.dequantize(), 2 * weight_of(model.get_submodule(name)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_true_sequential_calibrates_on_the_compressed_linears_before(
    tmp_path: Path, family: str
) -> None:
    """Oracle: compress input by input in the whole model, which is forwarded whole every time."""
    model = families.save(family, tmp_path / "model")
    steps = [{"method": "sparsegpt", "pattern": "2:4"}]
    decoder, blocks = _walk(
        tmp_path / "model", tmp_path / "store", steps, IDS, order="true-sequential"
    )
    _, at_once = _walk(tmp_path / "model", tmp_path / "other", steps)
    sparsegpt = registry.get("sparsegpt")
    config = registry.configure("sparsegpt", {"pattern": "2:4"})
    differing = 0
    for index, folder in enumerate(blocks):
        found, block_order = load_block(folder), load_block(at_once[index])
        prefix = f"{decoder.family.blocks}.{index}."
        for group in decoder.family.groups:
            names = [prefix + name for name in group]
            X = _inputs_of(model, names[:1], IDS)[names[0]].flatten(0, 1)
            for name in names:
                linear = model.get_submodule(name)
                W, stats = weight_of(linear), LayerStats(tokens=len(X), H=2 / len(X) * X.T @ X)
                expected = sparsegpt.compress(W, Dense(W), stats, config).dequantize()
                kept = found[name].dequantize()
                assert torch.allclose(kept, expected, rtol=1e-3, atol=1e-4), name
                differing += not torch.equal(kept, block_order[name].dequantize())
            for name in names:
                linear, kept = model.get_submodule(name), found[name].dequantize()
                linear.weight.data = kept.t().contiguous() if family == "gpt2" else kept
    assert differing > 0


def test_linears_with_one_input_share_a_factor_that_is_then_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    made: list[int] = []
    real, kept = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(
        torch.linalg,
        "cholesky_ex",
        lambda matrix, *, upper=False: made.append(len(matrix)) or real(matrix, upper=upper),
    )
    original = LayerStats.shared

    def shared(self: LayerStats, key: Any, make: Any) -> Any:
        kept.append(self)
        assert not any(stats._made for stats in kept if stats is not self)
        return original(self, key, make)

    monkeypatch.setattr(LayerStats, "shared", shared)
    _walk(tmp_path / "model", tmp_path / "store", [{"method": "sparsegpt", "pattern": "2:4"}])
    # Two blocks of four inputs: attention, its output, the MLP, its output.
    assert made == [32, 32, 32, 48] * 2


def test_errors_of_sparsegpt_and_gptq_are_in_the_record_in_the_hessian_norm(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    for steps in (
        [{"method": "sparsegpt", "pattern": "2:4"}],
        [{"method": "gptq", "group_size": 16}],
        [{"method": "sparsegpt", "pattern": "2:4"}, {"method": "gptq", "group_size": 16}],
        [{"method": "wanda", "pattern": "2:4"}, {"method": "gptq", "group_size": 16}],
        [{"method": "sparsegpt", "pattern": "50%", "bits": 4}],
    ):
        _, blocks = _walk(tmp_path / "model", tmp_path / "store", steps)
        for report in json.loads((blocks[1] / "layers.json").read_text()).values():
            assert report["norm"] == "hessian"
            assert 0 < report["relative_error"] < 1


class _Looks:
    """Notes which statistics it is given."""

    name, paper, config = "looks", "test", MethodConfig

    def __init__(self, needs: Statistic) -> None:
        self.needs = needs
        self.seen: list[LayerStats] = []

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def compress(self, *given: Any) -> Any:
        _, current, stats, _ = given
        self.seen.append(stats)
        return current


def test_held_out_sequences_reach_the_method_whose_options_ask_for_them(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    optima = {"method": "optima", "decides": "held-out"}
    _, blocks = _walk(tmp_path / "model", tmp_path / "store", [*WANDA, optima])
    report = json.loads((blocks[0] / LAYERS).read_text("utf-8"))
    told = next(iter(report.values()))["diagnostics"][-1]
    assert told["method"] == "optima"
    assert "error_at_least" not in told  # of the tokens that decide, which were not solved on


@pytest.mark.parametrize("needs", [Statistic.NOTHING, Statistic.X_NORM, Statistic.ACTIVATIONS])
def test_a_method_gets_only_what_it_asked_for(
    needs: Statistic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.save("llama", tmp_path / "model")
    method, original = _Looks(needs), registry.get
    monkeypatch.setattr(registry, "get", lambda n: method if n == "looks" else original(n))
    steps = [{"method": "looks"}, {"method": "sparsegpt", "pattern": "2:4"}]
    _walk(tmp_path / "model", tmp_path / "store", steps)
    for stats in method.seen:
        there = {s for s, name in STATISTICS.items() if getattr(stats, name) is not None}
        assert there == set(needs)
    q, k = method.seen[:2]
    assert q is k
