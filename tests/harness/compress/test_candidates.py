"""harness/compress/candidates.py: whole models of layers at some level each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.harness import families
from trinity.harness.compress.candidates import candidates
from trinity.harness.compress.versions import FILE
from trinity.harness.models.decoder import Decoder, oriented, weight_of
from trinity.methods.errors import ConfigError

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))


def stored(folder: Path, decoder: Decoder, model: Any) -> dict[str, Path]:
    """Every layer at level 0, as it is, and at level 1, halved.  The stage of each"""
    found = {}
    for index in range(2):
        place = folder / str(index)
        place.mkdir()
        weights = {n: weight_of(model.get_submodule(n)) for n in decoder.layer_names(index)}
        tensors = {f"{name} 0": W.clone() for name, W in weights.items()}
        save_file(tensors | {f"{name} 1": W / 2 for name, W in weights.items()}, place / FILE)
        found |= dict.fromkeys(weights, place)
    return found


def logits(model: Any, ids: Tensor) -> Tensor:
    """-> float64 [seq, vocabulary]"""
    with torch.no_grad():
        found: Tensor = model.double()(input_ids=ids[None], use_cache=False).logits[0]
        model.float()
        return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_choice_is_measured_as_the_whole_model_with_its_weights(
    tmp_path: Path, family: str
) -> None:
    """Oracle: forwards of the whole model in float64, and the sums of the definitions."""
    model = families.save(family, tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    versions = stored(tmp_path, decoder, model)
    dense = [logits(model, ids).log_softmax(-1) for ids in IDS]
    names = list(versions)
    choices = [
        dict.fromkeys(names, 0),
        {name: int(number % 3 == 0) for number, name in enumerate(names)},
        {name: int(number % 2 == 0) for number, name in enumerate(names)},
    ]
    with candidates(decoder, IDS, versions, tmp_path) as found:
        measured = [(found.divergence(c, [0, 2]), found.loss(c, [1])) for c in choices]
    originals = {name: weight_of(model.get_submodule(name)).clone() for name in names}
    for choice, (divergence, loss) in zip(choices, measured, strict=True):
        for name, level in choice.items():
            module = model.get_submodule(name)
            module.weight.data = oriented(module, originals[name] / 2**level).contiguous()
        now = [logits(model, ids).log_softmax(-1) for ids in IDS]
        kl = [(dense[i].exp() * (dense[i] - now[i])).sum(-1).mean() for i in (0, 2)]
        assert divergence == pytest.approx(float(sum(kl)) / 2, rel=1e-3, abs=1e-7)
        told = now[1][:-1].gather(1, IDS[1][1:, None])
        assert loss == pytest.approx(-float(told.mean()), rel=1e-4)
    assert measured[0][0] == pytest.approx(0, abs=1e-7)
    assert measured[1][0] > 1e-5


def test_only_layers_whose_level_changes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    versions = stored(tmp_path, decoder, model)
    from trinity.harness.compress import candidates as module

    read: list[tuple[str, int]] = []
    load = module.load_version

    def watched(folder: Path, name: str, level: int) -> Tensor:
        read.append((name, level))
        return load(folder, name, level)

    monkeypatch.setattr(module, "load_version", watched)
    first = dict.fromkeys(versions, 0)
    name = next(iter(versions))
    with candidates(decoder, IDS, versions, tmp_path) as found:
        one = found.divergence(first, [0])
        read.clear()
        found.divergence({**first, name: 1}, [0])
        assert found.divergence(first, [0]) == one
    assert read == [(name, 1), (name, 0)]


def test_afterwards_the_model_is_not_in_memory(tmp_path: Path) -> None:
    model = families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    versions = stored(tmp_path, decoder, model)
    with candidates(decoder, IDS, versions, tmp_path) as found:
        found.loss(dict.fromkeys(versions, 1), [0])
        assert not any(p.is_meta for p in decoder.model.parameters())
    assert all(p.is_meta for p in decoder.model.parameters())


def test_a_model_that_gives_no_numbers_is_an_error(tmp_path: Path) -> None:
    model = families.save("llama", tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    versions = stored(tmp_path, decoder, model)
    names = decoder.layer_names(1)
    huge = {f"{name} 0": weight_of(model.get_submodule(name)) * 1e38 for name in names}
    save_file(huge, tmp_path / "1" / FILE)
    with (
        candidates(decoder, IDS, versions, tmp_path) as found,
        pytest.raises(ConfigError, match="gives NaN"),
    ):
        found.loss(dict.fromkeys(versions, 0), [0])
