"""What other packages add to Trinity: one lazy table of entry points, used by every group.

A listing imports no plugin and fails for none of them: a plugin that is broken, or whose name is
taken twice, is an error where it is used, which names its distribution.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from trinity.methods.errors import ConfigError, PluginError, nearest

OURS = "trinity"
PACKAGE = "compression-trinity"  # what pip calls the distribution
NO_DISTRIBUTION = "an unknown distribution"
T = TypeVar("T")


@dataclass(frozen=True)
class Owner:
    """Who registers a name.

    distribution: 'trinity', or what pip installed   version: None for Trinity's own
    target: 'module:object', or for Trinity's own what the group's table says
    """

    distribution: str
    version: str | None
    target: str

    def __str__(self) -> str:
        """'my-methods 0.1', for messages."""
        return f"{self.distribution} {self.version}" if self.version else self.distribution


@dataclass(frozen=True)
class Group:
    """The names of one entry-point group, beside those that Trinity has itself.

    name: of the group, 'trinity.methods'   kind: one of its members, 'method'
    own: Trinity's own names, each with the place where it is defined
    """

    name: str
    kind: str
    own: Callable[[], Iterable[tuple[str, str]]]

    def names(self) -> list[str]:
        """Every name that someone registers, sorted; loads nothing."""
        return sorted(self._owners())

    def owners(self, name: str) -> list[Owner]:
        """All who register a name: one, unless names clash; none if nobody does."""
        return self._owners().get(name, [])

    def owner(self, name: str) -> Owner:
        """The one who registers a name; ConfigError if nobody does, or several."""
        owners = self.owners(name)
        if not owners:
            known = self.names()
            msg = (
                f"{self.kind} '{name}' is not registered.{nearest(name, known)} "
                f"There is {', '.join(known)}; packages add more in the group '{self.name}'."
            )
            raise ConfigError(msg)
        if len(owners) > 1:
            both = " and by ".join(f"{owner} ({owner.target})" for owner in owners)
            msg = f"{self.kind} '{name}' is registered twice: by {both}. Uninstall one."
            raise ConfigError(msg)
        return owners[0]

    def load(self, name: str) -> object:
        """A plugin's object; PluginError says what is wrong with it.

        Importing someone's code can fail in any way, and may even end the process.
        """
        owner = self.owner(name)
        entry = EntryPoint(name, owner.target, self.name)
        try:
            loaded: object = entry.load()
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise self.broken(name, f"'{owner.target}' cannot be loaded ({said})") from error
        return loaded

    def load_as(self, name: str, kind: type[T], what: str) -> T:
        """A plugin's object, of a type; what: the type in words, for the error."""
        loaded = self.load(name)
        if not isinstance(loaded, kind):
            target, found = self.owner(name).target, type(loaded).__name__
            raise self.broken(name, f"'{target}' is of type {found}, not {what}")
        return loaded

    def broken(self, name: str, what: str) -> PluginError:
        """The error to raise for a plugin that is not what it should be."""
        owner = next(iter(self.owners(name)), Owner(NO_DISTRIBUTION, None, ""))
        return PluginError(
            f"{self.kind} '{name}' of {owner}: {what}. Mend or uninstall {owner.distribution}."
        )

    def _owners(self) -> dict[str, list[Owner]]:
        owners = {name: [Owner(OURS, None, place)] for name, place in self.own()}
        for entry in installed(self.name):
            owner = Owner(*distribution_of(entry), entry.value)
            registered = owners.setdefault(entry.name, [])
            if owner not in registered:  # an editable install is seen twice
                registered.append(owner)
        return owners


def versions(owners: Iterable[Owner]) -> dict[str, str]:
    """Distribution -> version, of those that are not Trinity."""
    found = (owner for owner in owners if owner.distribution != OURS)
    return {owner.distribution: owner.version or "unknown" for owner in found}


@cache
def installed(group: str) -> Iterable[EntryPoint]:
    """The entry points of one group in this environment, read once from every package."""
    return entry_points(group=group)


def distribution_of(entry: EntryPoint) -> tuple[str, str | None]:
    """Name and version of the distribution that registers an entry point."""
    if entry.dist is None:
        return NO_DISTRIBUTION, None
    return entry.dist.name, entry.dist.version
