import sys
from pathlib import Path

import pytest

from tests.harness.figures.results import write_results
from trinity.harness.figures.shown import Shown, shown
from trinity.harness.plots import plot as plots
from trinity.methods.errors import ConfigError, MachineError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    pytest.importorskip("matplotlib", reason="missing: matplotlib (the extra `plot`)")
    return shown(write_results(tmp_path_factory.mktemp("results")))


@pytest.mark.parametrize("name", plots.NAMES)
def test_every_figure_is_drawn_as_pdf_and_png(name: str, runs: list[Shown], tmp_path: Path) -> None:
    asked = plots.Asked((name,))
    plots.check(asked)
    files, lacking = plots.plot(runs, asked, tmp_path / "a b")
    assert lacking == []
    assert {path.suffix for path in files} == {".pdf", ".png"}
    assert all(path.stem.startswith(name) for path in files)
    for path in files:
        start = b"%PDF" if path.suffix == ".pdf" else b"\x89PNG"
        assert path.read_bytes().startswith(start)


def test_the_same_records_give_the_same_files(runs: list[Shown], tmp_path: Path) -> None:
    asked = plots.Asked(("seeds",))
    plots.check(asked)
    one, two = (plots.plot(runs, asked, tmp_path / name)[0] for name in "ab")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_words_choose_what_is_measured_by(runs: list[Shown]) -> None:
    figure = plots.figures(runs)["speed"]
    chosen = [option.label for option in plots._options(figure, ["PIQA", "times dense"])]
    assert chosen == ["M, piqa % (3 questions)", "times dense"]


def test_one_run_is_drawn_alone_and_two_with_their_difference(
    runs: list[Shown], tmp_path: Path
) -> None:
    grids = plots.layers.layer_grids(runs)
    assert [g.run for g in plots._pair(grids, ("rtn",))] == ["rtn", "rtn"]
    assert [g.run for g in plots._pair(grids, ("wanda-2of4", "rtn"))] == ["wanda-2of4", "rtn"]
    with pytest.raises(ConfigError, match=r"no such run.*rtn"):
        plots._pair(grids, ("gptq",))


def test_a_wrong_name_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"bitz: there is no such figure.*bits"):
        plots.check(plots.Asked(("bitz",)))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MachineError, match=r"compression-trinity\[plot\]"):
        plots.check(plots.Asked())
