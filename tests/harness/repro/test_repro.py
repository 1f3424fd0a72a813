"""Which tables a profile fills; the runs themselves are replaced."""

from pathlib import Path

import pytest

from trinity.harness.recipes import paper
from trinity.harness.repro import availability, repro
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tables that are written, without running a row."""
    written: list[str] = []

    def write_table(chosen: repro.Chosen, name: str, *_: object) -> repro.Reproduced:
        written.append(name)
        return repro.Reproduced("model", "", ())

    monkeypatch.setattr(repro.Rows, "run", lambda self, *_: self.cells.append(None))
    monkeypatch.setattr(repro, "_say_cost", lambda *_: None)
    monkeypatch.setattr(repro, "write_table", write_table)
    monkeypatch.setattr(availability, "check_machine", lambda _: None)
    monkeypatch.setattr(availability, "refused", lambda *_: {})
    monkeypatch.setattr(repro, "first_at_hand", lambda profile: profile.data[0])
    return written


@pytest.mark.parametrize(
    ("name", "table", "profile", "expected"),
    [
        ("slim", None, "smoke", ["table1"]),
        ("slim", None, "embedded", ["table1"]),
        ("slim", "table9", "embedded", ["table9"]),
        ("optima", None, "smoke", list(paper.load("optima").tables)),
    ],
)
def test_a_profile_fills_its_own_tables_unless_one_is_asked_for(
    filled: list[str],
    tmp_path: Path,
    name: str,
    table: str | None,
    profile: str,
    expected: list[str],
) -> None:
    store = StageStore(tmp_path / "store")
    asked = repro.Selection(table, profile)
    list(repro.reproduce(name, asked, tmp_path, store, Reporter(quiet=True)))
    assert filled == expected


def test_the_paper_profile_fills_all_tables(filled: list[str], tmp_path: Path) -> None:
    store = StageStore(tmp_path / "store")
    asked = repro.Selection(profile="paper")
    list(repro.reproduce("slim", asked, tmp_path, store, Reporter(quiet=True)))
    models = len(paper.load("slim").profiles["paper"].models)
    assert filled == [name for name in paper.load("slim").tables for _ in range(models)]


@pytest.mark.parametrize("name", paper.names())
def test_every_table_can_be_asked_for_with_every_profile(name: str) -> None:
    definition = paper.load(name)
    for profile in definition.profiles:
        for table in definition.tables:
            assert repro.choose(name, repro.Selection(table, profile)).rows[table]
        assert repro.choose(name, repro.Selection(profile=profile)).rows


def test_the_rows_that_a_profile_names_are_those_of_the_table_that_has_them() -> None:
    table1, table5 = (
        repro.choose("slim", repro.Selection(table, "small")).rows[table]
        for table in ("table1", "table5")
    )
    assert len(table1) == 5
    assert len(table5) > 5


@pytest.mark.parametrize("last", ["table5", None])
def test_a_table_whose_rows_all_fail_does_not_keep_the_others_away(
    filled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str | None
) -> None:
    def run(rows: repro.Rows, *_: object) -> None:
        table = "table5" if rows.planned[0][0].name.startswith("acc-") else "table1"
        if table == last:
            rows.cells.append(None)
        else:
            for item in rows.planned:
                rows._fail(item, MachineError("too small"), "too small")

    monkeypatch.setattr(repro.Rows, "run", run)
    store, asked = StageStore(tmp_path / "store"), repro.Selection(profile="smoke")
    slim = paper.load("slim")
    smoke = slim.profiles["smoke"].model_copy(update={"tables": ("table1", "table5")})
    changed = slim.model_copy(update={"profiles": {**slim.profiles, "smoke": smoke}})
    monkeypatch.setattr(paper, "load", lambda _: changed)
    run_all = repro.reproduce("slim", asked, tmp_path, store, Reporter(quiet=True))
    if last is None:
        with pytest.raises(MachineError, match="too small"):
            list(run_all)
    else:
        list(run_all)
        assert filled == ["table5", "table1"]


def a_profile() -> paper.Profile:
    """A profile with nothing but data: the hub's first, then pydoc."""
    pydoc = {"dataset": "pydoc", "split": "train"}
    c4 = {"dataset": "c4", "split": "train"}
    hub = {"hub": True, "calibration": c4, "evaluate": {"suites": ["slim-zeroshot"]}}
    local = {"calibration": pydoc, "evaluate": {"suites": ["perplexity-pydoc"]}}
    return paper.Profile.model_validate({"summary": "", "models": ["m"], "data": [hub, local]})


@pytest.mark.parametrize(
    ("missing", "taken"), [(None, "c4"), ("allenai/c4", "pydoc"), ("cais/mmlu", "pydoc")]
)
def test_one_missing_text_or_task_of_an_option_takes_the_next(
    monkeypatch: pytest.MonkeyPatch, missing: str | None, taken: str
) -> None:
    monkeypatch.delenv("TRINITY_DATA_DIR", raising=False)
    monkeypatch.setattr(availability, "hub_answers", lambda: True)
    monkeypatch.setattr(
        "trinity.harness.hub.data_sets.obtainable", lambda dataset, _=None: dataset != missing
    )
    assert repro.first_at_hand(a_profile()).calibration.dataset == taken


def test_without_a_hub_its_option_needs_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRINITY_DATA_DIR", raising=False)
    monkeypatch.setattr(availability, "hub_answers", lambda: False)
    assert repro.first_at_hand(a_profile()).calibration.dataset == "pydoc"


@pytest.mark.parametrize(
    ("cached", "taken"), [({"allenai/c4", "cais/mmlu"}, "pydoc"), (None, "c4")]
)
def test_where_the_hub_is_off_its_option_is_judged_by_what_was_fetched(
    monkeypatch: pytest.MonkeyPatch, cached: set[str] | None, taken: str
) -> None:
    monkeypatch.delenv("TRINITY_DATA_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        "trinity.harness.hub.data_sets.cached_commit",
        lambda dataset, _=None: "abc" if cached is None or dataset in cached else None,
    )
    assert repro.first_at_hand(a_profile()).calibration.dataset == taken


@pytest.mark.parametrize(
    ("profile", "folder"), [("smoke", "smoke-results"), ("embedded", "results"), (None, "results")]
)
def test_a_smoke_run_never_lies_among_results(profile: str | None, folder: str) -> None:
    assert repro.default_out(profile) == Path(folder)
