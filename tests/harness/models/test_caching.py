"""Rounded keys and values in torch: a definition in float64, every family, every way to read."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.harness import families
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.models import caching
from trinity.harness.models.caching import Caching, cached_attention, caching_of
from trinity.harness.recipes.recipe import CompressSpec
from trinity.methods.errors import ConfigError, RecordError, UnsupportedError

INT4 = Caching.of("rtn-cache", {"bits": 4})
GEAR = Caching.of("gear", {"bits": 4, "buffer": 6, "rank": 2, "outliers": 0.1})
WITHOUT = {"bloom", "mpt", "gptj", "falcon"}  # whose attention is their own
IDS = torch.randint(0, 96, (1, 29), generator=torch.Generator().manual_seed(1))


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(families.CONFIGS[name]()).eval()


def sees(kept: Caching, keys: Tensor, values: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """What one position reads: whole groups before its own rounded, the rest as it is; of caches
    that round each position by itself, its own too.
    """
    together = kept.format.together
    done = position + 1 if together == 1 else position // together * together
    found = [], []
    for first in range(0, done, together):
        group = slice(first, first + together)
        made = kept.method.rounded_cache(keys[:, :, group], values[:, :, group], kept.config)
        for parts, part in zip(found, made, strict=True):
            parts.append(part)
    rest = slice(done, position + 1)
    return torch.cat([*found[0], keys[:, :, rest]], 2), torch.cat(
        [*found[1], values[:, :, rest]], 2
    )


@pytest.mark.parametrize("kept", [INT4, GEAR], ids=lambda kept: kept.name)
@pytest.mark.parametrize("before", [0, 13])
def test_attention_reads_what_the_definition_says(kept: Caching, before: int) -> None:
    """The last queries of a text, or all of them, a position and head at a time in float64."""
    query = torch.randn(2, 4, 20 - before, 16)
    keys, values = torch.randn(2, 2, 2, 20, 16)
    places = torch.arange(20)
    mask = torch.where(places[before:, None] >= places, 0.0, torch.finfo(torch.float32).min)
    found, _ = cached_attention(
        nn.Module(), query, keys, values, mask[None, None], caching=kept, scaling=0.25
    )
    for row, position in enumerate(range(before, 20)):
        k, v = (x.double().repeat_interleave(2, 1) for x in sees(kept, keys, values, position))
        weights = (query[:, :, row, None].double() @ k.mT * 0.25).softmax(-1)
        wanted = (weights @ v)[:, :, 0]
        torch.testing.assert_close(found[:, row].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(families.CONFIGS))
def test_every_family_reads_rounded_keys_or_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    with torch.no_grad():
        floats = model(IDS).logits
    if name in WITHOUT:
        with pytest.raises(UnsupportedError, match=rf"^model type {name}: the library does not"):
            INT4.install(model)
        return
    calls = []

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(given[0])
        return cached_attention(*given, **options)

    monkeypatch.setattr(caching, "cached_attention", counted)
    INT4.install(model)
    with torch.no_grad():
        found = model(IDS).logits
    assert len(calls) == model.config.num_hidden_layers
    off = float((found - floats).norm() / floats.norm())
    assert 1e-5 < off < 0.2
    _same_however_it_is_read(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_positions_that_wait_are_the_same_however_a_text_is_read(name: str) -> None:
    model = model_of(name)
    GEAR.check(model.config, "here")
    GEAR.install(model)
    _same_however_it_is_read(model)


def _same_however_it_is_read(model: Any) -> None:
    engine = TorchEngine(model, 64, "simulated")
    whole = engine.logits(IDS[0])
    session = engine.session()
    found = [session.prefill(IDS[:, :9])[0]]
    found += [session.step(token)[0] for token in IDS[:, 9:].unbind(1)]
    torch.testing.assert_close(torch.stack(found), whole[8:], rtol=1e-3, atol=1e-4)


def test_what_a_prefix_gives_does_not_depend_on_what_follows() -> None:
    for kept in (INT4, GEAR):
        model = model_of("llama")
        kept.install(model)
        with torch.no_grad():
            whole, part = model(IDS).logits, model(IDS[:, :17]).logits
        torch.testing.assert_close(whole[:, :17], part, rtol=1e-4, atol=1e-5)


def test_sinks_are_refused() -> None:
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(UnsupportedError, match="has sinks"):
        cached_attention(nn.Module(), x, x, x, torch.zeros(1, 1, 3, 3), caching=INT4, s_aux=x)


def test_a_window_that_cuts_through_groups_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="gear rounds 6 positions together, and the model's"):
        GEAR.check(families.CONFIGS["mistral"](), "here")
    INT4.check(families.CONFIGS["mistral"](), "here")


def test_a_recipe_names_a_cache_method_and_its_options() -> None:
    config = families.CONFIGS["llama"]()
    spec = CompressSpec.model_validate({"cache": {"method": "rtn-cache", "bits": 8}})
    made = caching_of(spec, config)
    assert made is not None
    assert made.label == "rtn-cache: int8 token and head"
    assert caching_of(CompressSpec(), config) is None
    for wrong, reason in (
        ({"method": "wanda"}, "'wanda' does not keep keys and values"),
        ({"method": "rtn-cache", "bits": 5}, "bits"),
        ({"method": "gear", "rank": 8}, "compress.cache: gear: rank 8 is no low one"),
    ):
        with pytest.raises(ConfigError, match=reason):
            caching_of(CompressSpec.model_validate({"cache": wrong}), config)
    # Records and fingerprints of recipes without one are what they were.
    assert "cache" not in CompressSpec().model_dump(mode="json")


@pytest.mark.parametrize("kept", [INT4, GEAR], ids=lambda kept: kept.name)
def test_what_a_checkpoint_declares_is_read_back(kept: Caching) -> None:
    data = kept.to_json()
    assert Caching.from_json(data) == kept
    for wrong in ({**data, "method": "no-such"}, {"method": kept.name}, {**data, "options": 3}):
        with pytest.raises(RecordError, match="cannot be read"):
            Caching.from_json(wrong)
    other = {**data, "format": {**data["format"], "bits": 3}}
    with pytest.raises(RecordError, match="another version of it wrote this"):
        Caching.from_json(other)
