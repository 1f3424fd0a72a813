"""A kind of suite is one object: a new one is used from the store to the record, with no edit."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from trinity.harness.accuracy import suites
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.recipes import recipe
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.repro import fetching
from trinity.harness.runs import estimate
from trinity.harness.runs.run import Run
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods import plugins
from trinity.methods.errors import ConfigError, PluginError

KIND = '''
from typing import Literal

from trinity.harness.accuracy.suite import MeasuredSuite
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.records.measurement import Measurement


class TallSuite(MeasuredSuite):
    """How large the model's largest logit is."""

    kind: Literal["tallest"]
    limit: int = 3

    def data(self):
        return SuiteData(texts=(("pydoc", "test"),))

    def tokens(self):
        return self.limit

    def measure(self, engine, tokenizer, dense=None):
        from torch import arange

        largest = float(engine.logits(arange(self.limit)).max())
        return [
            Measurement(
                name=self.name,
                metric="logit",
                value=largest,
                unit="1",
                higher_is_better=True,
                path=engine.path,
                engine=engine.name,
            )
        ]


SUITE = {"kind": "tallest"}
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a plugin that brings a kind, and a suite of it."""
    place = tmp_path / "tall_plugin.py"
    place.write_text(KIND, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tall_plugin", raising=False)
    own_code._plugin_tree.cache_clear()
    entries = {
        suites.KINDS_GROUP: [EntryPoint("tallest", "tall_plugin:TallSuite", suites.KINDS_GROUP)],
        suites.GROUP: [EntryPoint("tall", "tall_plugin:SUITE", suites.GROUP)],
    }
    monkeypatch.setattr(plugins, "installed", lambda group: entries.get(group, []))
    return place


def test_a_kind_of_a_plugin_is_measured_sized_and_kept_in_the_store(
    place: Path, tmp_path: Path
) -> None:
    data = {
        "name": "test",
        "model": {"id": "random:tiny-llama"},
        "evaluate": {"suites": [{"suite": "tall", "limit": 5}]},
    }
    store = StageStore(tmp_path / "store")
    (found,) = (
        Run(recipe.parse(data, "test"), store, Reporter(quiet=True)).finish().record.measurements
    )
    assert (found.name, found.metric, found.engine) == ("tall", "logit", "torch")
    kept = list(tmp_path.joinpath("store").rglob("measurements.json"))
    again = Run(recipe.parse(data, "test"), store, Reporter(quiet=True)).finish().record
    assert again.measurements == [found]
    assert list(tmp_path.joinpath("store").rglob("measurements.json")) == kept


def test_a_kinds_code_is_in_the_key_of_its_stage(place: Path) -> None:
    suite = suites.resolve(SuiteSpec(suite="tall"))

    def key() -> str:
        own_code._plugin_tree.cache_clear()
        return own_code.sha256(parts=[(type(suite), [suites.kind_owner(suite)])])

    before = key()
    place.write_text(KIND + "\nNEW = 1\n", encoding="utf-8")
    assert key() != before


def test_its_data_are_checked_fetched_and_its_cost_estimated(place: Path) -> None:
    spec = SuiteSpec(suite="tall", limit=4)
    assert suites.data(spec) == SuiteData(texts=(("pydoc", "test"),))
    assert suites.missing(spec) is None
    data = {"model": {"id": "a/b"}, "evaluate": {"suites": [spec.model_dump()]}}
    asked = recipe.parse(data, "test")
    assert fetching.of_recipes([asked], "").texts == (("pydoc", "test"),)
    assert estimate.tokens_of(asked) == 4


def test_its_sizes_are_those_of_its_class(place: Path) -> None:
    assert suites.sized(["tall"], {"limit": 2}) == [{"suite": "tall", "limit": 2}]
    with pytest.raises(ConfigError, match="of kind tallest and has no windows"):
        suites.resolve(SuiteSpec(suite="tall", windows=2))


def test_a_kind_that_lacks_a_part_is_told_which(place: Path) -> None:
    place.write_text(KIND.replace("def measure(", "def measured("), encoding="utf-8")
    with pytest.raises(PluginError, match=r"'tall_plugin:TallSuite' has no measure\b"):
        suites.resolve(SuiteSpec(suite="tall"))


def test_a_kind_that_is_no_suite_is_its_packages_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("odd", "pathlib:Path", suites.KINDS_GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    with pytest.raises(PluginError, match="not derived from a suite"):
        suites.kind("odd")
