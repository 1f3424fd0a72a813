from importlib.metadata import EntryPoint

import pytest

from tests.harness.tiny import BigramEngine, ByteTokenizer
from trinity.harness import data
from trinity.harness.accuracy import suites
from trinity.harness.recipe import SuiteSpec
from trinity.methods.errors import ConfigError

PLUGIN = {"kind": "perplexity", "corpus": "pydoc", "split": "test", "seqlen": 64, "windows": 2}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    """A third-party suite, registered without installing a package."""
    entry = EntryPoint("short-pydoc", f"{__name__}:PLUGIN", suites.GROUP)
    monkeypatch.setattr(suites, "entry_points", lambda *, group: [entry])
    suites._owners.cache_clear()
    yield entry.name
    suites._owners.cache_clear()


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_that_is_listed_loads(name: str) -> None:
    assert suites.load(name).name == name


def test_the_papers_six_tasks_count_mmlu_once() -> None:
    suite = suites.load("slim-zeroshot")
    assert isinstance(suite, suites.TasksSuite)
    assert sorted(suite.tasks) == sorted(
        ["mmlu", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa"]
    )


def test_wikitext_perplexity_has_the_papers_length_and_all_windows() -> None:
    suite = suites.load("perplexity-wikitext2")
    assert isinstance(suite, suites.PerplexitySuite)
    assert (suite.seqlen, suite.windows, suite.joiner) == (2048, None, "\n\n")


def test_an_unknown_suite_gets_the_nearest_names() -> None:
    with pytest.raises(
        ConfigError, match=r"'perplexity-wikitext'.*Did you mean perplexity-wikitext2"
    ):
        suites.load("perplexity-wikitext")


def test_an_unknown_key_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'mine' has no key seq_len.*Did you mean seqlen"):
        suites.parse("mine", {"kind": "perplexity", "seq_len": 3})


def test_a_wrong_value_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"'mine': seqlen: .*found 1"):
        suites.parse("mine", PLUGIN | {"seqlen": 1})


def test_an_unknown_kind_gets_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"`kind` is one of perplexity, tasks, last-word, fidelity, flips, found None",
    ):
        suites.parse("mine", {"tasks": ["piqa"]})


def test_a_recipe_changes_sizes_that_the_suite_has() -> None:
    suite = suites.resolve(SuiteSpec(suite="perplexity-pydoc", seqlen=128, windows=3))
    assert isinstance(suite, suites.PerplexitySuite)
    assert (suite.seqlen, suite.windows) == (128, 3)


def test_a_size_that_the_suite_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="of kind tasks and has no windows"):
        suites.resolve(SuiteSpec(suite="slim-zeroshot", windows=3))


def test_a_third_party_suite_runs(plugin: str) -> None:
    (found,) = suites.run(SuiteSpec(suite=plugin), BigramEngine(), ByteTokenizer())
    assert found.name == plugin
    assert len(found.samples) == 2


def test_a_third_party_suite_with_a_taken_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("slim-zeroshot", f"{__name__}:PLUGIN", suites.GROUP)
    monkeypatch.setattr(suites, "entry_points", lambda *, group: [entry])
    suites._owners.cache_clear()
    with pytest.raises(ConfigError, match="'slim-zeroshot' is registered twice"):
        suites.names()
    monkeypatch.undo()
    suites._owners.cache_clear()


def test_what_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.DATA_DIR, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = suites.missing(SuiteSpec(suite="slim-zeroshot", tasks=("piqa", "mmlu")))
    assert missing is not None
    assert "piqa/validation.jsonl.gz" in missing
    assert "mmlu/test.jsonl.gz" in missing
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert suites.missing(SuiteSpec(suite="slim-zeroshot")) is None
    assert suites.at_hand(SuiteSpec(suite="slim-zeroshot")) is not None


@pytest.mark.parametrize("name", ["perplexity-pydoc", "pydoc-last-word"])
def test_suites_on_pydoc_need_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.DATA_DIR, raising=False)
    assert suites.at_hand(SuiteSpec(suite=name)) is None
    assert suites.missing(SuiteSpec(suite=name)) is None


def test_the_fingerprint_of_a_text_is_its_hash() -> None:
    found = suites.fingerprint(SuiteSpec(suite="perplexity-pydoc"))
    assert found == {"pydoc": data.load("pydoc", "test").sha256}


def test_last_word_prediction_runs_by_its_suite() -> None:
    spec = SuiteSpec(suite="pydoc-last-word", limit=5)
    (found,) = suites.run(spec, BigramEngine(max_length=4096), ByteTokenizer())
    assert (found.name, found.metric, len(found.samples)) == ("pydoc-last-word", "acc", 5)
