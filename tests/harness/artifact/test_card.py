import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.figures.results import WANDA, one_record
from trinity.harness.artifact import card
from trinity.harness.recipes.recipe import parse
from trinity.harness.records.record import Record
from trinity.harness.runs.outputs import export_to
from trinity.harness.runs.run import Run
from trinity.harness.store import sums
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError

MADE = one_record("wanda-2of4", WANDA, bits=4.5, error=0.1)


def _noted(folder: Path, of: Record, **changes: Any) -> None:
    """What `trinity export` writes of the checkpoint that a record is of."""
    said = {
        "model": {"id": of.model.id, "sha256": of.model.sha256},
        "calibration": of.calibration,
        "layers": of.checkpoint.layers,
        **changes,
    }
    (folder / "trinity-export.json").write_text(json.dumps(said), encoding="utf-8")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    settings = {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    _noted(tmp_path, MADE)
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"id": "other", "sha256": "1"}}, "it is of m .* was made from other"),
        ({"calibration": {"samples": 8, "dataset": "c4", "seed": 1, "ids_sha256": "x"}}, "seed 1"),
        ({"layers": one_record("rtn", WANDA, bits=4.5, error=0.2).checkpoint.layers}, "error 0.2"),
        ({"layers": {}}, "only the record has a compressed layer"),
    ],
)
def test_a_record_of_another_checkpoint_is_refused(
    changes: dict[str, Any], said: str, exported: Path
) -> None:
    _noted(exported, MADE, **changes)
    with pytest.raises(ConfigError, match=said):
        card.write(exported, MADE, "box.json", None)
    assert not (exported / "README.md").exists()


def test_a_folder_that_does_not_say_what_it_is_of_is_refused(exported: Path) -> None:
    (exported / "trinity-export.json").unlink()
    with pytest.raises(ConfigError, match="nothing says which run"):
        card.write(exported, MADE, "box.json", None)


def test_files_that_were_changed_after_the_export_are_refused(exported: Path) -> None:
    sums.write(exported)
    (exported / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="no longer what `trinity export` wrote"):
        card.write(exported, MADE, "box.json", None)


def test_an_export_takes_the_record_of_its_own_run_and_of_no_other(tmp_path: Path) -> None:
    store, reporter, out = StageStore(tmp_path / "store"), Reporter(quiet=True), tmp_path / "out"
    runs = []
    for bits in (4, 8):
        step = {"method": "rtn", "bits": bits, "group_size": 32, "scale_dtype": "float16"}
        data = {"name": f"rtn-{bits}", "model": {"id": "random:tiny-llama"}}
        runs.append(Run(parse({**data, "compress": {"steps": [step]}}, "test"), store, reporter))
    four, eight = (run.finish() for run in runs)
    export_to(four.checkpoint, "gptq", out)
    with pytest.raises(ConfigError, match="int8 group 32"):
        card.write(out, eight.record, "eight.json", None)
    card.write(out, four.record, "four.json", None)
