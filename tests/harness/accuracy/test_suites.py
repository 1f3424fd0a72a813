import gzip
import math
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.harness.tiny import VOCAB, BigramEngine, ByteTokenizer  # noqa: F401  # VOCAB is a plugin that is no suite
from trinity.harness.accuracy import measured, suites
from trinity.harness.accuracy.kinds.perplexity import PerplexitySuite
from trinity.harness.accuracy.kinds.tasks import TasksSuite
from trinity.harness.accuracy.suite import ComparedSuite, TextSuite
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.records.facts import Sized
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import power
from trinity.harness.store import own_code
from trinity.harness.texts import corpora
from trinity.methods import plugins
from trinity.methods.errors import ConfigError, PluginError

BAD_KIND = {"kind": "perplexities"}
PLUGIN = {"kind": "perplexity", "corpus": "pydoc", "split": "test", "seqlen": 64, "windows": 2}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    """A third-party suite, registered without installing a package."""
    entry = EntryPoint("short-pydoc", f"{__name__}:PLUGIN", suites.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    return entry.name


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_that_is_listed_loads(name: str) -> None:
    assert suites.load(name).name == name


def test_the_papers_six_tasks_count_mmlu_once() -> None:
    suite = suites.load("slim-zeroshot")
    assert isinstance(suite, TasksSuite)
    assert sorted(suite.tasks) == sorted(
        ["mmlu", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa"]
    )


def test_wikitext_perplexity_has_the_papers_length_and_all_windows() -> None:
    suite = suites.load("perplexity-wikitext2")
    assert isinstance(suite, PerplexitySuite)
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
        match=r"`kind` is one of fidelity, flips, last-word, perplexity, tasks, found None",
    ):
        suites.parse("mine", {"tasks": ["piqa"]})


def test_a_recipe_changes_sizes_that_the_suite_has() -> None:
    suite = suites.resolve(SuiteSpec(suite="perplexity-pydoc", seqlen=128, windows=3))
    assert isinstance(suite, PerplexitySuite)
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
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    with pytest.raises(ConfigError, match="'slim-zeroshot' is registered twice"):
        suites.load("slim-zeroshot")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module:X", "No module named"),
        (f"{__name__}:VOCAB", "of type int, not a mapping"),
        (f"{__name__}:BAD_KIND", "expected a mapping whose `kind`"),
    ],
)
def test_a_broken_third_party_suite_breaks_no_other(
    target: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("bad", target, suites.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    assert "bad" in suites.names()
    assert suites.load("perplexity-pydoc").name == "perplexity-pydoc"
    with pytest.raises(PluginError, match=said):
        suites.load("bad")


def test_what_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(corpora.DATA_DIR, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = suites.missing(SuiteSpec(suite="slim-zeroshot", tasks=("piqa", "mmlu")))
    assert missing is not None
    assert "piqa/validation.jsonl.gz" in missing
    assert "mmlu/test.jsonl.gz" in missing
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert suites.missing(SuiteSpec(suite="slim-zeroshot")) is None
    assert suites.data(SuiteSpec(suite="slim-zeroshot")).at_hand() is not None


@pytest.mark.parametrize("name", ["perplexity-pydoc", "pydoc-last-word"])
def test_suites_on_pydoc_need_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(corpora.DATA_DIR, raising=False)
    assert suites.data(SuiteSpec(suite=name)).at_hand() is None
    assert suites.missing(SuiteSpec(suite=name)) is None


def test_the_fingerprint_of_a_text_is_its_hash() -> None:
    found = suites.data(SuiteSpec(suite="perplexity-pydoc")).fingerprint()
    assert found == {"pydoc": corpora.load("pydoc", "test").sha256}


def test_last_word_prediction_runs_by_its_suite() -> None:
    spec = SuiteSpec(suite="pydoc-last-word", limit=5)
    (found,) = suites.run(spec, BigramEngine(max_length=4096), ByteTokenizer())
    assert (found.name, found.metric, len(found.samples)) == ("pydoc-last-word", "acc", 5)


def test_scores_are_kept_under_all_code_that_makes_them_and_no_other() -> None:
    tree = own_code.own_tree()
    reached = tree.closure(frozenset({TasksSuite.__module__, measured.__name__}))
    of_others = tree.closure(frozenset({PerplexitySuite.__module__, measured.__name__}))
    assert "trinity.harness.accuracy.tasks" not in of_others
    kept = (
        "accuracy.tasks",
        "accuracy.task_definitions",
        "engines.finite",
        "texts.jsonl",
        "hub.data_sets",
        "texts.corpora",
    )
    assert {f"trinity.harness.{name}" for name in kept} <= reached


def test_a_size_goes_to_the_suites_that_have_it() -> None:
    names = ["perplexity-pydoc", "slim-zeroshot", "flips-slim-zeroshot", "fidelity-pydoc"]
    found = suites.sized(names, {"limit": 20, "windows": 4, "seqlen": None})
    assert found == [
        {"suite": "perplexity-pydoc", "windows": 4},
        {"suite": "slim-zeroshot", "limit": 20},
        {"suite": "flips-slim-zeroshot", "limit": 20},
        {"suite": "fidelity-pydoc", "windows": 4},
    ]


def test_a_size_that_no_suite_has_is_refused_with_the_sizes_that_they_have() -> None:
    with pytest.raises(ConfigError, match=r"--windows: .*slim-zeroshot has --limit\."):
        suites.sized(["slim-zeroshot"], {"windows": 4})
    with pytest.raises(
        ConfigError,
        match=r"--limit: .*: perplexity-pydoc has --seqlen and --windows; fidelity-pydoc has",
    ):
        suites.sized(["perplexity-pydoc", "fidelity-pydoc"], {"limit": 4, "windows": 3})


def test_a_models_context_bounds_the_suites_own_windows_and_no_others() -> None:
    spec = SuiteSpec(suite="perplexity-pydoc", windows=3)
    assert suites.bounded(spec, 512) == spec.model_copy(update={"seqlen": 512})
    assert suites.bounded(spec, 2048) is spec
    tasks = SuiteSpec(suite="slim-zeroshot")
    assert suites.bounded(tasks, 64) is tasks
    with pytest.raises(ConfigError, match=r"seqlen is 600, and this model reads 512 tokens"):
        suites.bounded(SuiteSpec(suite="fidelity-pydoc", seqlen=600), 512)


def test_a_text_that_lacks_documents_of_its_suite_is_refused(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLUGIN, "documents", 10**6)
    with pytest.raises(ConfigError, match=r"first 1000000 documents of pydoc .* holds \d+:"):
        suites.run(SuiteSpec(suite=plugin), BigramEngine(), ByteTokenizer())


def test_no_task_counts_twice() -> None:
    with pytest.raises(ConfigError, match="names a task twice"):
        suites.resolve(SuiteSpec(suite="slim-zeroshot", tasks=("piqa", "piqa")))


def test_data_that_change_while_they_are_measured_are_not_kept_under_the_old_hash(
    plugin: str,
) -> None:
    spec = SuiteSpec(suite=plugin)
    found = suites.run(spec, BigramEngine(), ByteTokenizer())
    measured.check_read(plugin, suites.data(spec).fingerprint(), found)
    with pytest.raises(ConfigError, match=r"pydoc_data.topics .* changed while it was measured"):
        measured.check_read(plugin, {"pydoc": "0"}, found)


def test_a_resolution_chooses_how_many_questions_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRINITY_DATA_DIR", raising=False)
    spec = SuiteSpec(suite="slim-zeroshot", resolve="4 points")
    # By hand: 2.8016^2 * 0.4 / 0.04^2 = 1962.2 questions, a sixth of each task.
    assert getattr(suites.resolve(spec), "limit", None) == 328
    assert "resolve" not in suites.resolve(spec).model_dump()


def test_flips_are_of_the_questions_that_a_resolution_chose() -> None:
    spec = SuiteSpec(suite="flips-slim-zeroshot", resolve="4 points")
    flips = suites.resolve(spec)
    assert isinstance(flips, ComparedSuite)
    assert flips.compared == SuiteSpec(suite="slim-zeroshot", resolve="4 points")


def test_too_few_questions_for_a_resolution_are_refused_with_what_they_resolve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRINITY_DATA_DIR", raising=False)
    spec = SuiteSpec(suite="slim-zeroshot", tasks=("openbookqa",), resolve="4 points")
    words = "cannot resolve 4 points: all 500 questions of its tasks at hand resolve 7.92 points"
    with pytest.raises(ConfigError, match=words):
        suites.resolve(spec)
    assert suites.resolve(spec.model_copy(update={"resolve": "8 points"}))


def test_a_local_file_counts_for_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "openbookqa" / "test.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(b'{"id": 1}\n{"id": 2}\n\n'))
    monkeypatch.setenv("TRINITY_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="all 2 questions"):
        suites.resolve(SuiteSpec(suite="slim-zeroshot", tasks=("openbookqa",), resolve="4 points"))


def test_tasks_of_unknown_size_are_not_sized() -> None:
    spec = SuiteSpec(suite="slim-zeroshot", tasks=("piqa", "sciq"), resolve="4 points")
    with pytest.raises(ConfigError, match=r"questions sciq has .* Give the suite a `limit`"):
        suites.resolve(spec)


def test_a_resolution_beside_a_limit_is_refused() -> None:
    spec = SuiteSpec(suite="slim-zeroshot", limit=100, resolve="4 points")
    with pytest.raises(ConfigError, match="Leave out one of the two"):
        suites.resolve(spec)


def test_a_resolution_that_no_suite_measures_is_refused() -> None:
    text = SuiteSpec(suite="perplexity-pydoc", resolve="4 points")
    with pytest.raises(ConfigError, match=r"none of perplexity-pydoc measures in points: suites"):
        suites.check_resolution([text])
    suites.check_resolution([text, SuiteSpec(suite="slim-zeroshot", resolve="4 points")])
    suites.check_resolution([SuiteSpec(suite="perplexity-pydoc")])
    both = SuiteSpec(suite="perplexity-pydoc", resolve=("1.2x", "0.1 nats"))
    with pytest.raises(ConfigError, match=r"`evaluate.resolve: 0.1 nats`.* in nats: suites of fid"):
        suites.check_resolution([both])


def _resolved(suite: str, resolve: str | tuple[str, ...], seqlen: int = 1024) -> int:
    found = suites.resolve(SuiteSpec(suite=suite, resolve=resolve, seqlen=seqlen))
    assert isinstance(found, TextSuite)
    assert found.windows is not None
    return found.windows


def test_a_resolution_chooses_how_many_windows_are_read() -> None:
    prior = power.PRIORS["perplexity"]
    windows = _resolved("perplexity-wikitext2", "1.1x")
    assert windows == power.windows_for(math.log(1.1), prior, 1024, 292)
    assert windows < _resolved("perplexity-wikitext2", ("4 points", "1.08x"))
    assert _resolved("perplexity-wikitext2", "1.1x", 512) > windows
    assert _resolved("perplexity-wikitext2", "3x") == power.LEAST_WINDOWS


def test_fidelity_reads_enough_windows_for_divergence_and_for_agreement() -> None:
    wanted = ("1.5 points", "0.09 nats")
    of_points, of_nats = (_resolved("fidelity-wikitext2", one) for one in wanted)
    assert of_points != of_nats
    assert _resolved("fidelity-wikitext2", wanted) == max(of_points, of_nats)


def test_a_resolution_in_another_unit_leaves_a_text_whole() -> None:
    suite = suites.resolve(SuiteSpec(suite="perplexity-wikitext2", resolve="4 points"))
    assert isinstance(suite, TextSuite)
    assert suite.windows is None


def test_too_short_a_text_for_a_resolution_is_refused() -> None:
    spec = SuiteSpec(suite="perplexity-pydoc", seqlen=1024, resolve="1.001x")
    with pytest.raises(ConfigError, match=r"cannot resolve 1.001x: all of the about 146 windows"):
        suites.resolve(spec)


def test_windows_beside_a_resolution_are_refused() -> None:
    spec = SuiteSpec(suite="perplexity-pydoc", windows=10, resolve="1.1x")
    with pytest.raises(ConfigError, match=r"`windows: 10`.*Leave out one of the two"):
        suites.resolve(spec)


def _measured(name: str, metric: str, samples: list[float], **details: Any) -> Measurement:
    return Measurement(
        name=name,
        metric=metric,
        value=0.5,
        unit="1",
        higher_is_better=True,
        path="reference",
        engine="torch",
        samples=samples,
        details=details,
    )


def test_measurements_say_what_they_were_sized_for() -> None:
    asked = _measured("piqa", "acc", [0.0, 1.0] * 200)
    (m,) = suites.resolved(SuiteSpec(suite="slim-zeroshot", resolve="4 points"), [asked])
    sized = Sized.of(m)
    assert (sized.resolve, sized.discordance) == ("4 points", 0.4)
    assert sized.resolution == pytest.approx(0.0886, abs=1e-4)
    assert suites.resolved(SuiteSpec(suite="slim-zeroshot"), [asked]) == [asked]


def test_windows_say_what_they_resolve_as_far_as_their_clusters_let_them() -> None:
    spec = SuiteSpec(suite="fidelity-pydoc", seqlen=2048, resolve=("2 points", "1.05x"))
    kl, agreement = (
        _measured("fidelity-pydoc", metric, [0.5] * 32, windows=32, clusters=alike)
        for metric, alike in (("kl", None), ("top1_agreement", [0] * 20 + [1] * 12))
    )
    found = [Sized.of(m) for m in suites.resolved(spec, [kl, agreement])]
    assert found[0] == Sized()  # no nats were asked for
    assert (found[1].resolve, found[1].discordance) == ("2 points", None)
    assert (found[1].deviation, found[1].alike) == (0.025, 0.3)
    assert found[1].resolution is not None
    assert found[1].resolution > 0.1  # two unequal clusters show little
    spec = SuiteSpec(suite="perplexity-pydoc", resolve="1.1x")
    losses = _measured("perplexity-pydoc", "perplexity", [3.0] * 40, windows=40)
    (m,) = suites.resolved(spec, [losses])
    assert Sized.of(m).resolution == pytest.approx(1.09, abs=0.02)  # a ratio
