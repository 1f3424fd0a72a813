"""harness/compress/versions.py: layers at several levels, made in the model before compression."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness import families
from trinity.harness.compress import plan
from trinity.harness.compress.versions import Tried, Versions, load_version
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import ConfigError
from trinity.methods.formats import parse_pattern
from trinity.methods.wanda import mask

IDS = torch.randint(0, 96, (3, 16), generator=torch.Generator().manual_seed(1))
WANDA = {"method": "wanda", "pattern": "50%"}
PATTERNS = {0: "50%", 1: "75%"}


def decoder_of(folder: Path) -> Decoder:
    return Decoder(folder, torch.float32, torch.device("cpu"))


def tried(folder: Path, steps: list[dict[str, Any]], **more: Any) -> Tried:
    """Every layer that has the steps, at two sparsities of the last one."""
    spec = CompressSpec.model_validate({"steps": [{"method": "evopress"}, *steps], **more})
    made = plan.make(spec, decoder_of(folder).layer_shapes())
    found: dict[str, dict[int, tuple[plan.PlannedStep, ...]]] = {}
    for name, (_, *own) in ((name, steps) for name, steps in made.steps.items() if steps):
        found[name] = {
            at: (*own[:-1], own[-1].changed({"pattern": p})) for at, p in PATTERNS.items()
        }
    return found


def run(folder: Path, store: Path, of: Tried) -> dict[str, Path]:
    return Versions(decoder_of(folder), IDS, StageStore(store), {}).run(of, lambda at, to: None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_is_what_the_step_makes_in_the_model_before_compression(
    tmp_path: Path, family: str
) -> None:
    """Oracle: Wanda's mask by the inputs of whole-model forwards."""
    model = families.save(family, tmp_path / "model")
    folders = run(tmp_path / "model", tmp_path / "store", tried(tmp_path / "model", [WANDA]))
    assert folders.keys() == decoder_of(tmp_path / "model").layer_shapes().keys()
    for name, folder in folders.items():
        seen: list[torch.Tensor] = []
        module = model.get_submodule(name)
        handle = module.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
        with torch.no_grad():
            for sequence in IDS:
                model(input_ids=sequence[None], use_cache=False)
        handle.remove()
        norm = torch.cat(seen).square().sum(1).mean(0).sqrt()
        W = weight_of(module)
        for level, pattern in PATTERNS.items():
            kept = mask(W, norm, parse_pattern(pattern))
            assert torch.equal(load_version(folder, name, level), W * kept)


def test_a_block_is_a_stage_that_a_second_search_reads(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    of = tried(tmp_path / "model", [WANDA])
    store = StageStore(tmp_path / "store")
    making = Versions(decoder_of(tmp_path / "model"), IDS, store, {})
    first = making.run(of, lambda at, to: None)
    assert store.made == 2
    again = Versions(decoder_of(tmp_path / "model"), IDS, store, {})
    assert again.run(of, lambda at, to: None) == first
    assert store.made == 2


def test_steps_before_are_part_of_each(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    rtn = {"method": "rtn", "bits": 2, "group_size": "channel"}
    folders = run(tmp_path / "model", tmp_path / "store", tried(tmp_path / "model", [rtn, WANDA]))
    for name, folder in folders.items():
        for row in load_version(folder, name, 0):
            assert len(row.unique()) <= 4


def test_layers_without_the_step_have_none(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "model")
    of = tried(tmp_path / "model", [WANDA], layers={"*.mlp.*": []})
    folders = run(tmp_path / "model", tmp_path / "store", of)
    assert folders
    assert all("self_attn" in name for name in folders)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"method": "smoothquant"}, WANDA], "smoothquant: it changes several layers together"),
        (
            [{"method": "awq-clip", "group_size": 16}],
            "awq-clip: it changes several layers together",
        ),
        ([{"method": "squeezellm"}], "squeezellm: it needs fisher"),
        ([{"method": "gptaq", "group_size": 16}], "gptaq: it needs drift"),
    ],
)
def test_what_no_layer_alone_can_be_tried_with_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], expected: str
) -> None:
    families.save("llama", tmp_path / "model")
    made = plan.make(
        CompressSpec.model_validate({"steps": steps}), decoder_of(tmp_path / "model").layer_shapes()
    )
    of = {name: {0: own} for name, own in made.steps.items()}
    with pytest.raises(ConfigError, match=expected):
        run(tmp_path / "model", tmp_path / "store", of)
