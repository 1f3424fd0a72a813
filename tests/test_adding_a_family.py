"""docs/adding-a-family.md: the row on the page makes a new family work."""

import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Starcoder2Config

from trinity.harness.checkpoints import checkpoint
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models import families
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore
from trinity.methods import plugins
from trinity.methods.errors import PluginError

CONFIG = Starcoder2Config(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)


@pytest.fixture
def row(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> families.Family:
    """The page's row, registered as its pyproject.toml says."""
    page = (project_root / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    code = re.search(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    named = re.search(r'^(\w+) = "(my_families:\w+)"', page, re.MULTILINE)
    assert code
    assert named
    module = ModuleType("my_families")
    exec(code[1], vars(module))
    monkeypatch.setitem(sys.modules, "my_families", module)
    entry = EntryPoint(named[1], named[2], families.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry] * (group == families.GROUP))
    return families.get("starcoder2")


def test_a_model_of_the_new_family_is_compressed_and_read_back(
    row: families.Family, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG).eval()
    model.save_pretrained(tmp_path / "model")
    decoder = Decoder(tmp_path / "model", torch.float32, torch.device("cpu"))
    names = [f"model.layers.{i}.{name}" for i in (0, 1) for group in row.groups for name in group]
    assert list(decoder.layer_shapes()) == names
    spec = CompressSpec.model_validate({"steps": [{"method": "magnitude", "pattern": "2:4"}]})
    made = plan.make(spec, decoder.layer_shapes())
    blocks = Walk(decoder, made, None, StageStore(tmp_path / "store"), {}).run(lambda *_: None)
    (tmp_path / "out").mkdir()
    checkpoint.write(tmp_path / "out", decoder, blocks, {})
    pruned = checkpoint.Checkpoint.open(tmp_path / "out").load_model()
    for name in names:
        dense, kept = model.get_submodule(name).weight, pruned.get_submodule(name).weight
        assert int((kept.view(-1, 4) != 0).sum(1).max()) == 2
        assert torch.equal(dense[kept != 0], kept[kept != 0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks": "model.blocks"}, "its models have no blocks at 'model.blocks'"),
        ({"groups": (("mlp.c_fc",), ("mlp.fc",))}, "model.layers.0 has no linear 'mlp.fc'; it has"),
        ({"groups": (("mlp.c_fc",), ("mlp.c_proj",))}, "leave out self_attn.q_proj, self_attn.k"),
    ],
)
def test_a_row_that_is_not_about_the_model_is_refused_before_any_work(
    changes: dict[str, Any],
    said: str,
    row: families.Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path)
    monkeypatch.setattr(sys.modules["my_families"], "STARCODER2", replace(row, **changes))
    with pytest.raises(PluginError, match=re.escape(said)):
        Decoder(tmp_path, torch.float32, torch.device("cpu"))


def test_a_missing_comma_is_found() -> None:
    with pytest.raises(TypeError, match=r"expected tuples of texts.* found 'mlp\.fc'"):
        families.Family("model.layers", (("mlp.up",), ("mlp.fc")))  # type: ignore[arg-type]
