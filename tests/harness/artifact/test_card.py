import json
from pathlib import Path

import pytest
import yaml

from tests.harness.figures.results import WANDA, one_record
from trinity.harness.artifact import card
from trinity.methods.errors import ConfigError

MADE = one_record("wanda-2of4", WANDA, bits=4.5)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    settings = {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


def test_the_card_has_the_hubs_metadata_and_every_number(exported: Path) -> None:
    from huggingface_hub import ModelCard  # takes a second

    card.write(exported, MADE, "box.json", "apache-2.0")
    found = ModelCard((exported / "README.md").read_text(encoding="utf-8"))
    assert found.data.license == "apache-2.0"
    assert found.data.pipeline_tag == "text-generation"
    assert "Steps: wanda 2:4" in found.text
    assert "4.50" in found.text
    assert "Stored here as: gptq" in found.text
    assert "| piqa | 66.7 % | [60.0, 73.3] | simulated |" in found.text
    assert "box.json" in found.text
    recipe = yaml.safe_load(found.text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["compress"] == {"steps": WANDA}


def test_results_are_those_that_the_hub_reads(exported: Path) -> None:
    from huggingface_hub import parse_eval_result_entries  # takes a second

    files = card.write(exported, MADE, "box.json", None)
    (path,) = files[1:]
    assert path == exported / ".eval_results" / "piqa.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ybisk/piqa", "plain_text", 66.67)
    assert "3 questions" in str(entry.notes)


def test_nothing_is_claimed_of_an_unknown_licence_or_a_model_of_no_hub(exported: Path) -> None:
    text = card.card(MADE, "box.json", None, None)
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert "license" not in metadata
    assert "base_model" not in metadata
    assert "not known to Trinity" in text


def test_a_card_that_is_there_is_not_written_over(exported: Path, tmp_path: Path) -> None:
    (exported / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has a README\.md already"):
        card.write(exported, MADE, "box.json", None)
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        card.write(tmp_path / "absent", MADE, "box.json", None)
