"""How a command ends: interrupted, without a reader, asked for its version or completion."""

import errno
import io
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from trinity.harness import cli
from trinity.harness.terminal.progress import Reporter, draws
from trinity.methods.errors import MachineError

COMMAND = [sys.executable, "-m", "trinity.harness.cli"]


def _end(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trinity", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def _interrupted_in_python() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _interrupted_in_an_import_of_c_code() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        msg = "initialization of a module failed"
        raise ImportError(msg) from None


@pytest.mark.parametrize(
    "where", [_interrupted_in_python, _interrupted_in_an_import_of_c_code], ids=lambda f: f.__name__
)
def test_an_interrupt_says_what_is_kept_and_ends_with_130(
    where: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trinity.methods.registry.names", where)
    assert _end("methods", "list", monkeypatch=monkeypatch) == cli.INTERRUPTED
    said = capsys.readouterr().err
    assert "Finished stages are kept" in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_a_commands_end_changes_nothing(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flushed = cli._flushed  # the last thing that is done

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), number)
        return flushed(*arguments)

    monkeypatch.setattr(cli, "_flushed", interrupted)
    assert _end("methods", "list", monkeypatch=monkeypatch) == 0
    os.kill(os.getpid(), number)
    said = capsys.readouterr()
    assert "wanda" in said.out
    assert not said.err


def test_a_batch_systems_sigterm_is_an_interrupt_and_ends_with_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr("trinity.methods.registry.names", stopped)
    assert _end("methods", "list", monkeypatch=monkeypatch) == cli.TERMINATED
    assert capsys.readouterr().err.startswith("trinity: terminated. Finished stages are kept")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["python", "torch", "cuda"],
)
def test_too_little_memory_is_one_paragraph(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("trinity.methods.registry.names", fail)
    assert _end("methods", "list", monkeypatch=monkeypatch) == MachineError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("trinity: the memory was not enough (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["methods", "list"], ["methods", "list", "--json"]])
def test_without_a_reader_a_command_ends_in_silence(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_takes_nothing_is_one_paragraph() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "methods", "list"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == cli.UNWRITABLE
    assert done.stderr.startswith(b"trinity: the output cannot be written (No space left")
    assert done.stderr.count(b"\n") == 1


def test_a_write_that_fails_within_a_command_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> list[str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trinity.methods.registry.names", full)
    assert _end("methods", "list", monkeypatch=monkeypatch) == cli.UNWRITABLE
    assert "the output cannot be written" in capsys.readouterr().err


def test_a_closed_output_is_said_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert _end("--help", monkeypatch=monkeypatch) == cli.UNWRITABLE
    assert capsys.readouterr().err == f"trinity: {cli.CLOSED}\n"


def test_the_version_names_the_whole_tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _end("--version", monkeypatch=monkeypatch) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said == {name: version(name) for name in cli.TOOL}


def test_bash_completes_commands() -> None:
    asked = {"_TRINITY_COMPLETE": "complete_bash", "COMP_WORDS": "trinity comp", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from trinity.harness.cli import main; main()"],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "compress" in done.stdout


@pytest.mark.parametrize(
    ("variables", "drawn"),
    [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)],
)
def test_a_terminal_that_asks_for_plain_lines_gets_them(
    variables: dict[str, str], drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert draws(Console(file=io.StringIO(), force_terminal=True)) is drawn


def test_progress_without_a_terminal_is_a_line_at_each_fifth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Reporter() as reporter:
        for done in range(1, 101):
            reporter.step("blocks", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == [f"{n}/100" for n in (20, 40, 60, 80, 100)]
