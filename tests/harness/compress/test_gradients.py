"""harness/compress/gradients.py: squared gradients of the loss, and who gets them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import families
from trinity.harness.compress import plan
from trinity.harness.compress.gradients import Gradients, load_gradients
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import registry
from trinity.methods.contract import OF_LOSS, LayerStats, Statistic
from trinity.methods.errors import ConfigError

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")


def _by_autograd(model: Any, names: list[str]) -> dict[str, Tensor]:
    """Oracle: the whole model's own loss, a sequence at a time, in float64.  -> [out, in] each"""
    model = model.double().requires_grad_(True)
    found: dict[str, Tensor] = {}
    for ids in IDS:
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
        for name in names:
            module = model.get_submodule(name)
            gradient = module.weight.grad
            gradient = gradient if isinstance(module, torch.nn.Linear) else gradient.T
            found[name] = found.get(name, 0) + gradient.square() / len(IDS)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_they_are_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    model = families.save(family, tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, CPU)
    names = [name for index in range(2) for name in decoder.layer_names(index)]
    expected = _by_autograd(model, names)
    folder = Gradients(decoder, IDS, StageStore(tmp_path / "store"), {}, Statistic.FISHER).run(
        lambda at, of: None
    )
    found = load_gradients(folder, 0, CPU) | load_gradients(folder, 1, CPU)
    assert found.keys() == expected.keys()
    for name, of in expected.items():
        scale = float(of.max())
        torch.testing.assert_close(found[name].double(), of, rtol=1e-3, atol=1e-5 * scale)


def test_a_method_gets_its_layers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.save("llama", tmp_path / "model")
    decoder, store = Decoder(tmp_path / "model", torch.float32, CPU), StageStore(tmp_path / "store")
    spec = CompressSpec.model_validate({"steps": [{"method": "squeezellm", "bits": 2}]})
    made = plan.make(spec, decoder.layer_shapes())
    assert made.needs == Statistic.FISHER
    folder = Gradients(decoder, IDS, store, {}, Statistic.FISHER).run(lambda at, of: None)
    method, seen = registry.get("squeezellm"), list[LayerStats]()
    compress = type(method).compress  # type: ignore[union-attr]  # a source has none

    def spy(*args: Any) -> Any:
        seen.append(args[3])
        return compress(*args)

    monkeypatch.setattr(type(method), "compress", spy)
    Walk(decoder, made, IDS, store, {}, folder).run(lambda done, of: None)
    expected = [
        load_gradients(folder, index, CPU)[name]
        for index in range(2)
        for name in decoder.layer_names(index)
    ]
    assert len(seen) == len(expected)
    for stats, own in zip(seen, expected, strict=True):
        assert stats.fisher is not None
        assert torch.equal(stats.fisher, own)
        assert stats.H is None


def test_without_a_text_there_is_no_loss(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, CPU)
    with pytest.raises(ConfigError, match="no `calibration:`"):
        Gradients(decoder, None, StageStore(tmp_path / "store"), {}, Statistic.FISHER).run(
            lambda at, of: None
        )


def test_a_step_that_changes_the_weights_before_is_refused(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, CPU)
    steps = [{"method": "smoothquant"}, {"method": "squeezellm"}]
    with pytest.raises(ConfigError, match="gradients of the model as it was, and smoothquant"):
        plan.make(CompressSpec.model_validate({"steps": steps}), decoder.layer_shapes())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_method_gets_those_of_each_sequence_of_the_model_before_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Oracle: the whole model's own loss, a sequence at a time, in float64."""
    model = families.save(family, tmp_path / "model")
    decoder, store = Decoder(tmp_path / "model", torch.float32, CPU), StageStore(tmp_path / "store")
    spec = CompressSpec.model_validate({"steps": [{"method": "cap", "pattern": "2:4"}]})
    made = plan.make(spec, decoder.layer_shapes())
    assert made.needs == Statistic.GRADIENTS
    folder = Gradients(decoder, IDS, store, {}, made.needs).run(lambda at, of: None)
    method, seen = registry.get("cap"), list[Tensor]()
    compress = type(method).compress  # type: ignore[union-attr]  # a source has none

    def spy(*args: Any) -> Any:
        seen.append(args[3].gradients.clone())
        return compress(*args)

    monkeypatch.setattr(type(method), "compress", spy)
    Walk(decoder, made, IDS, store, {}, folder).run(lambda done, of: None)
    names = [name for index in range(2) for name in decoder.layer_names(index)]
    model = model.double().requires_grad_(True)
    for number, ids in enumerate(IDS):
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
        for name, found in zip(names, seen, strict=True):
            module = model.get_submodule(name)
            own = module.weight.grad
            own = own if isinstance(module, torch.nn.Linear) else own.T
            scale = float(own.abs().max())
            torch.testing.assert_close(found[number].double(), own, rtol=1e-3, atol=1e-5 * scale)


def test_one_pass_serves_both_kinds_and_each_keeps_only_its_own(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    decoder, store = Decoder(tmp_path / "model", torch.float32, CPU), StageStore(tmp_path / "store")
    kept = {}
    for needs in (Statistic.FISHER, Statistic.GRADIENTS, OF_LOSS):
        folder = Gradients(decoder, IDS, store, {}, needs).run(lambda at, of: None)
        kept[needs] = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"
        }
    assert len(kept[Statistic.FISHER]) == 2
    assert len(kept[Statistic.GRADIENTS]) == 2 * len(IDS)
    assert kept[OF_LOSS] == kept[Statistic.FISHER] | kept[Statistic.GRADIENTS]
