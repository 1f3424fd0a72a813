"""The lock file: the version of every package that Trinity needs, as installed or as recorded."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trinity.harness.figures.shown import Shown

OWN = "compression-trinity"


def lock(runs: Sequence[Shown]) -> str:
    """`name==version` a line.  Versions of the newest record come before those installed here."""
    newest = max(runs, key=lambda run: (run.record.date, run.path))
    packages = newest.record.environment.get("packages") or {}
    recorded: dict[str, str] = {
        canonicalize_name(n): str(v).partition("+")[0] for n, v in packages.items() if v
    }
    pins = _closure(OWN) | recorded
    commit = newest.record.environment.get("commit")
    own = f"# {OWN} {pins.pop(OWN, 'of unknown version')}, commit {commit or 'unknown'}\n"
    lines = [f"{name}=={version}" for name, version in sorted(pins.items())]
    return own + "\n".join(lines) + "\n"


def _closure(name: str) -> dict[str, str]:
    """Version of a distribution and of all that it needs here, by canonical names."""
    found: dict[str, str] = {}
    asked = [name]
    while asked:
        one = canonicalize_name(asked.pop())
        if one in found:
            continue
        try:
            there = distribution(one)
        except PackageNotFoundError:  # of a requirement that another system has
            continue
        found[one] = there.version.partition("+")[0]
        needs = [Requirement(text) for text in there.requires or ()]
        asked += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found
