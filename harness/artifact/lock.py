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


def beside(runs: Sequence[Shown]) -> list[str]:
    """What the runs need and Trinity does not: packages that hold a model, and plugins.

    Each with its version, where a record or this machine knows it.
    """
    found: dict[str, str | None] = {}
    for run in runs:
        scheme, _, name = run.record.model.id.partition(":")
        if scheme == "package":
            found[name] = _version(name)
        plugins = run.record.environment.get("plugins") or {}
        known = {plugin: version for plugin, version in plugins.items() if version != "unknown"}
        found |= dict.fromkeys(plugins) | known
    return [f"{name}=={version}" if version else name for name, version in sorted(found.items())]


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


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
