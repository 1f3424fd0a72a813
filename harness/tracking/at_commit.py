"""A project as it is at another commit, installed beside this environment and nowhere in it."""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trinity.methods.errors import ConfigError, MachineError


@dataclass(frozen=True)
class Checkout:
    """folder: of the project at that commit   python: that runs it   commit: its hash"""

    folder: Path
    python: str
    commit: str


@contextmanager
def checked_out(ref: str, inside: Path) -> Iterator[Checkout]:
    """The project that a folder is in, at a commit, branch or tag; gone at the end.

    Its packages are this environment's, but the project itself is that of the commit.
    """
    try:
        top = Path(_git(inside, "rev-parse", "--show-toplevel").strip())
        commit = _git(top, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").strip()
    except (OSError, subprocess.CalledProcessError) as error:
        msg = f"--baseline run:{ref}: is no commit, branch or tag of a git repository at {inside}."
        raise ConfigError(msg) from error
    with tempfile.TemporaryDirectory(prefix="trinity-gate-") as scratch:
        folder = Path(scratch, "project")
        try:
            _git(top, "worktree", "add", "--quiet", "--detach", str(folder), commit)
            try:
                yield Checkout(folder, installed(folder, Path(scratch, "venv")), commit)
            finally:
                _git(top, "worktree", "remove", "--force", str(folder))
        except subprocess.CalledProcessError as error:
            words = " ".join((error.stderr or "").split()) or str(error)
            msg = f"--baseline run:{ref}: the commit cannot be set up ({words})."
            raise MachineError(msg) from error


def installed(project: Path, place: Path) -> str:
    """The Python of an environment on top of this one in which the project is installed."""
    if not (project / "pyproject.toml").is_file():
        return sys.executable  # recipes alone: no code of the project runs
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = _run(str(python), "-c", ask).strip()
    # Everything that is installed here, editable packages too.  The last file by its name: the
    # project of the commit comes before that of this environment, in its paths and finders.
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    places += [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(places)]
    Path(own, "zz-below.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")
    _run(*pip, "--no-deps", "--editable", str(project))
    return str(python)


def _git(folder: Path, *words: str) -> str:
    return _run("git", "-C", str(folder), *words)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
