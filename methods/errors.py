"""Every error that a user can cause or meet, with the exit code the command line gives it."""

from difflib import get_close_matches
from typing import ClassVar


class TrinityError(Exception):
    """Base of all errors raised on purpose: one paragraph, where, what was found, what to do."""

    exit_code: ClassVar[int] = 1


class ConfigError(TrinityError):
    """The user's input is wrong: a recipe, an option, a file that does not hold what it should."""

    exit_code = 2


class UnsupportedError(ConfigError):
    """A (method, format, target) combination, a layer or a model that is not handled here."""


class LoweringError(TrinityError):
    """A compiler refused a module, or a compiled module disagrees with torch."""


class RecordError(ConfigError):
    """A record or a stored checkpoint is damaged, newer than this reader, or inconsistent."""


class MachineError(TrinityError):
    """This machine lacks what was asked for: a device, a driver, a data set, memory."""

    exit_code = 3


class NothingJudgedError(TrinityError):
    """A gate has nothing that it could judge: a run broke, or no samples are pairs."""

    exit_code = 4


class PluginError(TrinityError):
    """The code of a package beside Trinity is broken, raised, or broke its contract."""

    exit_code = 4


def nearest(name: str, known: list[str]) -> str:
    """Return ' Did you mean a or b?' for the known names closest to `name`, or an empty string."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
