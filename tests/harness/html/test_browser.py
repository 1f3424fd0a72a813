"""The page in a real browser: it draws, sorts, filters, tells, and fits a phone."""

from pathlib import Path

import pytest

from tests.harness.figures.results import write_results
from tests.harness.html import browser
from trinity.harness.figures.shown import shown
from trinity.harness.html import page


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    browser.path()
    pytest.importorskip("vl_convert", reason="missing: vl-convert-python (the extra `report`)")
    return page.render(shown(write_results(tmp_path_factory.mktemp("results"))), "../results/")


def test_it_draws_sorts_filters_and_tells_without_a_complaint(text: str, tmp_path: Path) -> None:
    said = browser.ask(text, "sorts_filters_tells", tmp_path)
    assert {name: count > 0 for name, count in said["marks"]} == dict.fromkeys(
        ("bits", "speed", "latency", "roofline", "memory", "seeds", "history"), True
    )
    assert said["heats"] == [6, 6, 6]  # two linears of three blocks, three times
    assert said["up"] == [["rtn", "wanda-2of4", "dense"], "ascending"]
    assert said["down"] == [["dense", "wanda-2of4", "rtn"], "descending"]
    assert said["filtered"] == [["wanda-2of4"], "1 of 3 runs"]
    assert len(said["kept"]) == 1
    assert "rtn" in said["kept"][0]
    assert "faster" in said["kept"][0]
    assert "against dense" in said["told"]


def test_choices_draw_other_rows_and_the_table_beside_them(text: str, tmp_path: Path) -> None:
    said = browser.ask(text, "choices", tmp_path)
    assert "c ppl (lower is better)" in said["before"]
    assert "piqa % (higher is better)" in said["after"]
    assert sorted(said["cells"]) == ["dense", "rtn", "wanda-2of4"]
    (flip,) = said["flips"]
    told = ["piqa", "1", "lost", "answer 1, by 2 nats", "answer 2, by 0.5 nats"]
    assert flip.split("\t") == told


def test_it_fits_a_phone_and_everything_is_reached_by_keyboard(text: str, tmp_path: Path) -> None:
    said = browser.ask(text, "phone", tmp_path, width=390)
    assert said["page"] <= said["width"] == 390
    assert said["wide"] == said["unnamed"] == []
    assert (said["focused"], said["language"]) == ("Run", "en")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_are_dark_enough_on_their_ground(theme: str, text: str, tmp_path: Path) -> None:
    if theme == "dark":  # a browser without a window has no other way to be told
        text = text.replace("(prefers-color-scheme: dark)", "all", 1)
    assert browser.ask(text, "contrast", tmp_path) == []
