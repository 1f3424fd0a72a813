import json
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.harness.records.test_record import make_record
from tests.harness.tiny import BigramEngine
from tests.harness.tracking.planted import Clock, Timed
from trinity.harness.latency import generate
from trinity.harness.records import record
from trinity.harness.records.facts import AgainstDense
from trinity.harness.records.measurement import Measurement
from trinity.harness.tracking import gate_files, judging, policy, references
from trinity.harness.tracking.judging import Broken, Gate, Ran
from trinity.harness.tracking.policy import Policy
from trinity.harness.tracking.references import Kept, Reference
from trinity.methods.errors import ConfigError

CHECKS: list[dict[str, Any]] = [
    {"metric": "perplexity", "allow": "1%", "minimum": "0.5%"},
    {"metric": "speedup", "allow": "5%", "minimum": "5%"},
    {"metric": "stored_bytes"},
]


def asked(*checks: dict[str, Any]) -> Policy:
    return Policy.model_validate({"recipes": ["dense.yaml"], "checks": checks or CHECKS})


def perplexity(worse: float = 0.0, windows: int = 12) -> Measurement:
    samples = np.random.default_rng(0).normal(3.0, 0.3, windows)
    moved = samples + worse * (1 + 0.1 * np.random.default_rng(1).normal(size=windows))
    return measured("perplexity-pydoc", "perplexity", moved.tolist(), engine="torch")


def speedup(seed: int, slower: float = 1.0) -> Measurement:
    """A run's ratios to the dense model: 3 % between processes, 2 % between samples of one."""
    rng = np.random.default_rng(seed)
    ratios = 3.0 / slower * np.exp(rng.normal(0, 0.03) + rng.normal(0, 0.02, 7))
    found = measured("decode", "speedup", ratios.tolist(), engine="iree")
    details = {"noise_floor": 0.02, "cpu": "box", "batch": 1}
    return found.model_copy(update={"details": details, "higher_is_better": True})


def size(count: int = 1000) -> Measurement:
    return measured("linears", "stored_bytes", [float(count)], engine="files")


def measured(name: str, metric: str, samples: list[float], engine: str) -> Measurement:
    value = float(np.mean(samples))
    return Measurement(
        name=name,
        metric=metric,
        value=float(np.exp(value)) if metric == "perplexity" else value,
        unit="1",
        higher_is_better=False,
        path="kernel",
        engine=engine,
        samples=samples,
    )


def kept(*measurements: Measurement, place: str = "new", **changes: Any) -> Kept:
    return Kept(place, make_record(measurements=list(measurements), **changes))


def judged(ours: Kept, *baselines: Kept, checks: tuple[dict[str, Any], ...] = ()) -> Gate:
    runs = [Ran("dense", ours)]
    return judging.judge(asked(*checks), runs, Reference("base", baselines, len(baselines) or 1))


def whole(seed: int = 0, **changes: float) -> list[Measurement]:
    return [
        perplexity(changes.get("worse", 0.0)),
        speedup(seed, changes.get("slower", 1.0)),
        size(int(changes.get("count", 1000))),
    ]


def test_a_gate_passes_where_nothing_changed_and_fails_on_each_kind_of_regression() -> None:
    base = [kept(*whole(seed), place=f"old-{seed}") for seed in range(1, 4)]
    assert judged(kept(*whole(9)), *base).exit_code == 0
    for change, metric in (
        ({"worse": 0.05}, "perplexity"),
        ({"slower": 1.3}, "speedup"),
        ({"count": 1001}, "stored_bytes"),
    ):
        gate = judged(kept(*whole(9, **change)), *base)
        assert gate.exit_code == 1
        assert [one.outcome.metric for one in gate.of("regressed")] == [metric]


def test_twenty_runs_without_a_regression_all_pass() -> None:
    """Each has new noise of its own processes, and is judged against the five before it."""
    history = [kept(*whole(seed), place=f"run-{seed}") for seed in range(25)]
    codes = [
        judged(history[now], *history[now - 5 : now]).exit_code for now in range(5, len(history))
    ]
    assert codes == [0] * 20


def test_a_speed_is_compared_with_the_slowest_comparable_baseline() -> None:
    fast, slow = speedup(1), speedup(1, slower=1.2)
    other = slow.model_copy(update={"details": {**slow.details, "cpu": "another"}})
    checks = ({"metric": "speedup"},)
    ours = kept(speedup(2, slower=1.2))
    bases = [kept(slow, place="slow"), kept(fast, place="fast")]
    assert judged(ours, *bases, checks=checks).exit_code == 0
    bases = [kept(other, place="other machine"), kept(fast, place="fast")]
    gate = judged(ours, *bases, checks=checks)
    assert (gate.exit_code, gate.judgements[0].baseline) == (1, "fast")


@pytest.mark.parametrize(
    ("ours", "baseline", "why"),
    [
        ([speedup(0)], [], "the baseline has no such measurement"),
        ([perplexity(windows=3)], [perplexity(windows=4)], "3 and 4 samples"),
        ([], [speedup(0)], "only the baseline has such a measurement"),
        ([], [], "no recipe of the policy measures this"),
    ],
)
def test_a_gate_that_could_judge_nothing_ends_with_four(
    ours: list[Measurement], baseline: list[Measurement], why: str
) -> None:
    metric = next((m.metric for m in [*ours, *baseline]), "acc")
    gate = judged(kept(*ours), kept(*baseline, place="old"), checks=({"metric": metric},))
    assert gate.exit_code == 4
    assert [one.why for one in gate.judgements] == [why]
    note = {"metric": metric, "unjudged": "note"}
    assert judged(kept(*ours), kept(*baseline, place="old"), checks=(note,)).exit_code == 4


def test_samples_too_few_to_show_anything_judge_nothing() -> None:
    check = {"metric": "perplexity"}
    few = kept(perplexity(0.05, windows=3)), kept(perplexity(windows=3), place="old")
    gate = judged(*few, checks=(check,))
    assert gate.exit_code == 4
    assert [one.why for one in gate.judgements] == ["too few samples to show any"]
    equal = kept(perplexity(windows=3)), kept(perplexity(windows=3), place="old")
    assert judged(*equal, checks=(check,)).exit_code == 0


def test_another_machine_is_no_baseline_for_speed_and_says_so() -> None:
    other = speedup(0)
    other = other.model_copy(update={"details": {**other.details, "cpu": "another"}})
    base = kept(perplexity(), other, place="old")
    checks = ({"metric": "speedup"}, {"metric": "perplexity"})
    gate = judged(kept(perplexity(), speedup(1)), base, checks=checks)
    assert gate.exit_code == 4
    assert [one.why for one in gate.of("unjudged")] == ["other machine"]
    noted = ({"metric": "speedup", "unjudged": "note"}, {"metric": "perplexity"})
    assert judged(kept(perplexity(), speedup(1)), base, checks=noted).exit_code == 0


def test_without_any_baseline_nothing_is_judged() -> None:
    gate = judged(kept(*whole()))
    assert gate.exit_code == 4
    assert {one.why for one in gate.judgements} == {"no record of this recipe and model"}


def test_a_broken_run_ends_with_four_and_a_regression_beside_it_with_one() -> None:
    base = Reference("base", [kept(*whole(1), place="old")])
    lost = Broken("other", "was killed")
    good, bad = Ran("dense", kept(*whole(2))), Ran("dense", kept(*whole(2, worse=0.1)))
    assert judging.judge(asked(), [lost], base).exit_code == 4
    assert judging.judge(asked(), [lost, good], base).exit_code == 4
    assert judging.judge(asked(), [lost, bad], base).exit_code == 1


def test_a_warning_passes_and_is_said() -> None:
    check = {"metric": "perplexity", "severity": "warn"}
    gate = judged(kept(perplexity(0.1)), kept(perplexity(), place="old"), checks=(check,))
    assert (gate.exit_code, gate.judgements[0].status) == (0, "warned")
    assert "warning" in gate_files.markdown(gate)


def test_an_effect_below_the_minimum_is_none() -> None:
    pair = kept(perplexity(0.004)), kept(perplexity(), place="old")
    assert judged(*pair, checks=({"metric": "perplexity"},)).exit_code == 1
    assert judged(*pair, checks=({"metric": "perplexity", "minimum": "0.5%"},)).exit_code == 0
    assert judged(*pair, checks=({"metric": "perplexity", "allow": "0.5%"},)).exit_code == 0


def test_the_files_say_the_same_to_people_and_programs(tmp_path: Path) -> None:
    base = Reference("main", [kept(*whole(1), place="old")])
    runs = [Ran("dense", kept(*whole(2, worse=0.1))), Broken("odd|name", "said \x1b[31mred")]
    gate = judging.judge(asked(), runs, base)
    places = {path.suffix: path.read_text("utf-8") for path in gate_files.write(gate, tmp_path)}
    assert "### Gate: regressed" in places[".md"]
    table = [line for line in places[".md"].splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    suites = ElementTree.fromstring(places[".xml"])
    assert sum(int(suite.get("failures", 0)) for suite in suites) == 1
    assert sum(int(suite.get("errors", 0)) for suite in suites) == 1
    assert len(suites.findall(".//failure")) == len(suites.findall(".//error")) == 1
    data = json.loads(places[".json"])
    assert (data["passed"], data["exit_code"], data["broken"][0]["recipe"]) == (
        False,
        1,
        "odd|name",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("checks: []", "`recipes` is missing"),
        ("recipes: [a]\nchecks: [{metric: perplexty}]", "perplexty"),
        ("recipes: [a]\nchecks: [{metric: acc, alow: 1}]", "Did you mean allow"),
        ("recipes: [a]\nchecks: [{metric: acc, allow: 1 pound}]", "5%"),
        ("recipes: [a]\nchecks: [{metric: tokens_per_s}]", "Judge 'speedup'"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_wrong_policy_says_which_key(text: str, said: str, tmp_path: Path) -> None:
    place = tmp_path / "gate.yaml"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        policy.read(place)


def test_amounts_are_read_in_the_words_of_their_metric() -> None:
    found = [
        policy.Check.model_validate({"metric": "acc", "allow": value}).allow
        for value in ("5%", "1 point", "2 points", "0.01 nats", 0.25)
    ]
    assert found == [0.05, 0.01, 0.02, 0.01, 0.25]


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_a_baseline_is_a_path_a_commit_or_the_last_of_a_branch_or_machine(tmp_path: Path) -> None:
    results = tmp_path / "my project" / "results"
    base = make_record().environment
    for day, branch, machine in ((1, "main", "a"), (2, "main", "b"), (3, "side", "a")):
        environment = {**base, "machine": machine, "project": {"branch": branch}}
        found = make_record(date=f"2026-01-0{day}", environment=environment)
        path = record.write(found, results)
        if day == 1:
            git(results, "init", "--quiet", "--initial-branch", "main")
            git(results, "add", ".")
            git(results, "commit", "--quiet", "--message", "one")

    def days(name: str) -> list[str]:
        return [one.record.date[-1] for one in references.resolve(name, results).of(make_record())]

    assert days(str(path)) == days(str(results)) == ["3"]
    assert days("last:2") == ["2", "3"]
    assert days("last:9:branch=main") == ["1", "2"]
    assert days("last:1:machine=b") == ["2"]
    # The first commit holds the record of the first day only.
    git(results, "branch", "old")
    git(results, "add", ".")
    git(results, "commit", "--quiet", "--message", "all")
    assert days("old") == ["1"]
    for name in ("last:0", "no-such-branch", "last:1:brunch=main"):
        with pytest.raises(ConfigError, match=f"--baseline {name}"):
            references.resolve(name, results)


def timed_speedup(clock: Clock, seconds: float, seed: int) -> Measurement:
    """The measured ratio of a dense model that takes 3 s a token, and of ours.

    Between processes 2 % of noise, between calls 1 %.
    """
    between = float(np.exp(np.random.default_rng(seed).normal(0, 0.02)))

    def engine(takes: float, number: int) -> BigramEngine:
        found = BigramEngine()
        found.path = "kernel"
        sessions, count = found.session, iter(range(10**6))

        def session() -> Timed:
            return Timed(sessions(), clock, takes, 1000 * (2 * seed + number) + next(count))

        found.session = session
        return found

    dense = generate.DenseEngine(engine(3.0, 0), f"dense (fingerprint {seed})")
    found = generate.decode([engine(seconds * between, 1)], 4, 3, repeats=7, baseline=dense)
    return AgainstDense(dense_model="sha in float32").added_to(found[-1])


def test_a_slowdown_planted_in_a_kernels_wrapper_fails_and_twenty_runs_without_one_pass(
    clock: Clock,
) -> None:
    """Really timed, in turn with the dense model and twice with that; only the seconds are ours."""
    checks = ({"metric": "speedup", "allow": "5%", "minimum": "5%"},)
    history = [kept(timed_speedup(clock, 1.0, n), place=f"run {n}") for n in range(23)]
    for now in range(3, 23):
        assert judged(history[now], *history[now - 3 : now], checks=checks).exit_code == 0
    planted = kept(timed_speedup(clock, 1.25, 99))
    assert judged(planted, *history[-3:], checks=checks).exit_code == 1
