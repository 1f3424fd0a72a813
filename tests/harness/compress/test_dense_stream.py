"""harness/compress/dense_stream.py, and the statistic that is made with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from tests.harness.compress import stopped
from trinity.harness.checkpoints.block import load_block
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder, set_weight
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import Statistic
from trinity.methods.formats import CompressedWeight

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))


def _inputs_of(model: Any, name: str) -> Tensor:
    """Inputs of a linear in whole-model forwards.  -> float64 [tokens, in]"""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for sequence in IDS:
            model(input_ids=sequence[None], use_cache=False)
    handle.remove()
    return torch.cat(seen).double()


def _put(model: Any, weights: Mapping[str, CompressedWeight]) -> None:
    for name, weight in weights.items():
        set_weight(model.get_submodule(name), weight.dequantize(), torch.float32)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("order", ["block", "true-sequential"])
def test_the_drift_is_that_of_the_inputs_in_the_model_before_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, order: str
) -> None:
    """Oracle: two whole models, forwarded whole: as it was, and compressed up to the layer."""
    dense = families.save(family, tmp_path / "model")
    compressed = families.save(family, tmp_path / "again")
    wanda, drifts = registry.get("wanda"), list[Tensor]()
    compress = type(wanda).compress  # type: ignore[union-attr]  # a source has none

    def spy(*args: Any) -> Any:
        drifts.append(args[3].H_drift)
        return compress(*args)

    monkeypatch.setattr(type(wanda), "needs", Statistic.X_NORM | Statistic.DRIFT)
    monkeypatch.setattr(type(wanda), "compress", spy)
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    steps = [{"method": "wanda", "pattern": "2:4"}]
    spec = CompressSpec.model_validate({"steps": steps, "order": order})
    made = plan.make(spec, decoder.layer_shapes())
    store = StageStore(tmp_path / "store")
    blocks = Walk(decoder, made, IDS, store, {}).run(lambda done, of: None)
    found, largest = iter(drifts), 0.0
    for index, folder in enumerate(blocks):
        weights = load_block(folder)
        prefix = f"{decoder.family.blocks}.{index}."
        for group in decoder.family.groups:
            names = [prefix + name for name in group]
            X, before = (_inputs_of(model, names[0]) for model in (compressed, dense))
            expected = 2 / len(X) * (before - X).T @ X
            for _ in names:
                torch.testing.assert_close(next(found).double(), expected, rtol=1e-4, atol=1e-5)
            largest = max(largest, float(expected.abs().max()))
            if order == "true-sequential":
                _put(compressed, {name: weights[name] for name in names})
        _put(compressed, weights)
    assert largest > 1e-2  # there was something to see


def test_a_killed_run_goes_on_with_both_streams(tmp_path: Path) -> None:
    """The second block, made after a restart, has the bytes of one made in the same run."""
    families.save("llama", tmp_path / "model")
    steps = [{"method": "gptaq", "bits": 4, "group_size": 16}]

    whole, again = stopped.whole_and_resumed(tmp_path, steps, IDS)
    for one, other in zip(whole, again, strict=True):
        files = [folder / "block.safetensors" for folder in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()
