import errno
import io
import json
import sys
from pathlib import Path

import pytest

from trinity.harness import cli
from trinity.methods import registry


def _trinity(
    *words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["trinity", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_methods_list_says_what_every_method_needs_and_gives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _trinity("methods", "list", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    rows = {row.pop("name"): row for row in json.loads(out)}
    assert set(registry.BUILT_IN) <= set(rows)
    assert rows["wanda"] == {
        "paper": "arXiv:2306.11695",
        "needs": "x_norm",
        "format": "2:4 float32",
        "owner": "trinity",
    }
    assert rows["rtn"]["needs"] == "nothing"
    assert rows["slope"]["format"] == "as stored"
    code, out, _ = _trinity("methods", "list", monkeypatch=monkeypatch, capsys=capsys)
    lines = out.splitlines()
    assert lines[0].split() == ["name", "paper", "needs", "format", "owner"]
    assert [line.split()[0] for line in lines[1:]] == [*rows, "mkor"]  # no method, but of the hub


def test_methods_list_goes_on_past_a_plugin_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", "trinity.no_such_module:BROKEN")
    code, out, _ = _trinity("methods", "list", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    row = next(x for x in out.splitlines() if x.startswith("broken"))
    assert row.split() == ["broken", "-", "-", "cannot", "be", "loaded", "trinity"]
    assert "No module named 'trinity.no_such_module'" in out
    assert "wanda" in out


def test_methods_check_prints_what_fails_and_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _trinity("methods", "check", "magnitude", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out.strip()) == (0, "magnitude: conforms")
    broken = registry.get("magnitude")
    monkeypatch.setattr(type(broken), "compress", lambda *_: 3)
    code, out, _ = _trinity("methods", "check", "magnitude", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert "is of type int, not a CompressedWeight" in out


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_methods_show_describes_every_method(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _trinity("methods", "show", name, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert out.startswith(f"{name} (")


def test_methods_show_says_what_statistics_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = _trinity("methods", "show", "gptaq", monkeypatch=monkeypatch, capsys=capsys)
    words = " ".join(out.split())
    assert "needs: hessian, drift" in words
    assert "drift: a second matrix [in, in], a second run of every block" in words


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["run", "absent.yaml"], 2, "absent.yaml"),
        (["repro", "slm"], 2, "Did you mean slim"),
        (["repro", "slim", "--profile", "smok"], 2, "Did you mean smoke"),
        (["repro", "slim", "--profile", "smoke", "--rows", "x*"], 2, "matches no row"),
        (["methods", "show", "wandas"], 2, "Did you mean wanda"),
        (["methods", "check", "not-a-package"], 2, "neither a registered method nor an installed"),
        (["methods", "check", "wnda"], 2, "Did you mean wanda"),
        (["methods", "check", "pytest"], 2, "registers nothing"),
        (["methods", "check", "pytest", "--set", "bits=3"], 2, "registers nothing"),
        (["methods", "check", "rtn", "--set", "bit=3"], 2, "Did you mean bits"),
        (
            ["compress", "random:tiny-llama", "--method", "wnda", "--out", "x"],
            2,
            "Did you mean wanda",
        ),
        (["eval", "./absent", "--suite", "perplexity-pydoc"], 2, "no such folder"),
        (["lower", "./absent", "--out", "x"], 2, "./absent"),
        (["table", "slim", "--out", "empty"], 2, "holds no record"),
        (["export", "./absent", "--format", "gptq", "--out", "x"], 2, "./absent"),
    ],
)
def test_a_user_error_is_one_paragraph_and_exit_code_two(
    words: list[str],
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert found == code
    assert expected.removeprefix("./") in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_the_paper_profile_without_a_gpu_says_all_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = _trinity(
        "repro", "slim", "--profile", "paper", monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 3
    assert "an NVIDIA GPU" in err
    assert "--profile embedded" in err


def test_compress_then_eval_then_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compressed"
    words = ["compress", "random:tiny-llama", "--method", "magnitude", "--set", "pattern=2:4"]
    code, text, _ = _trinity(
        *words, "--out", str(out), "--json", monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0
    assert json.loads(text)["layers"] == 14
    sizes = ["--seqlen", "64", "--windows", "2"]
    words = ["eval", str(out), "--suite", "perplexity-pydoc", *sizes, "--json"]
    code, text, _ = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert json.loads(text)[0]["path"] == "simulated"
    words = ["bench", str(out), "--suite", "decode", "--engine", "torch", "--prompt", "4"]
    words += ["--new", "2", "--repeats", "1", "--json"]
    code, text, _ = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    names = {m["name"] for m in json.loads(text)}
    assert {name for name in names if not name.startswith("ceiling-")} == {
        "tpot",
        "decode",
        "energy",
    }
    words += ["--batch", "1", "--batch", "2"]
    code, text, _ = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    batches = {m["name"]: m["details"].get("batch") for m in json.loads(text)}
    assert (batches["decode"], batches["decode-batch-2"]) == (1, 2)
    code, _, err = _trinity(*words, "--batch", "0", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert "`bench.batch.2`: should be greater than 0, found 0" in err


def test_a_folder_with_something_in_it_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    words = ["compress", "random:tiny-llama", "--method", "dense", "--out", str(tmp_path)]
    code, _, err = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "not an empty folder" in err
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_out_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell does not expand `--out=~/x`, and no folder called `~` is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").touch()
    _, _, err = _trinity(
        "repro",
        "slim",
        "--profile",
        "smoke",
        "--out=~/results",
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert f"{tmp_path}/results is a file" in err


def test_results_that_cannot_be_written_are_refused_before_the_work(
    tmp_path: Path,
    trinity_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {id: 'random:tiny-llama'}\n", encoding="utf-8")
    out = str(tmp_path / "file" / "results")
    for command in (["run", str(recipe)], ["repro", "slim", "--profile", "smoke"]):
        code, _, err = _trinity(
            *command, "--out", out, "--quiet", monkeypatch=monkeypatch, capsys=capsys
        )
        assert code == 2
        assert "is a file, not a folder" in err
        assert not list(trinity_cache.glob("model/*"))


def test_a_terminal_that_cannot_write_a_dash_gets_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["trinity", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    print("–", file=stdout, flush=True)
    assert written.getvalue().endswith(b"\\u2013\n")


def test_a_file_that_the_system_refuses_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/model.safetensors")

    monkeypatch.setattr("trinity.harness.runs.requests.run", refused)
    recipe = tmp_path / "recipe.yaml"
    recipe.touch()
    code, _, err = _trinity("run", str(recipe), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 3
    assert err.startswith("trinity: /somewhere/model.safetensors: the system refuses it")


@pytest.mark.parametrize(
    "command", ["run", "bench", "eval", "compress", "compare", "gate", "methods check"]
)
def test_the_help_has_no_types_of_python(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command.split(), "--help"]
    code, out, _ = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "list[" not in out


def test_an_error_is_broken_between_words_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "x", "--suite", "perplexity-pydocs"]
    _, _, piped = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    _, _, shown = _trinity(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert len(piped.splitlines()) == 1
    assert max(map(len, shown.splitlines())) <= 60
    assert shown.split() == piped.split()
