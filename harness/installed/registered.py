"""What is registered, for `trinity methods`: a listing, one method's options, its conformance."""

import inspect
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trinity.harness.recipes import recipe
from trinity.methods import registry
from trinity.methods.catalogue import CATALOGUE, Entry
from trinity.methods.errors import ConfigError, TrinityError, nearest
from trinity.methods.plugins import OURS, PACKAGE

if TYPE_CHECKING:
    from trinity.methods.declarations import Registered


def list_methods() -> list[dict[str, str]]:
    """Every registered method: name, paper, needs, format of its result, owner."""
    return [
        {"name": name, **asdict(_entry(name)), "owner": _owner(name)} for name in registry.names()
    ]


def _owner(name: str) -> str:
    """The distribution that registers a name; all of them where names clash."""
    return ", ".join(owner.distribution for owner in registry.owners(name))


def _entry(name: str) -> Entry:
    if name in CATALOGUE and _owner(name) == OURS:
        return CATALOGUE[name]
    try:
        method = registry.get(name)
    except TrinityError as error:
        # One broken plugin must not hide the others; using it raises.
        return Entry("-", "-", f"cannot be loaded: {error}")
    try:
        return entry_of(method)
    except Exception as error:
        # Whatever a plugin does when it is tried; `methods check` tells all of it.
        return Entry(method.paper, _needs(method), f"fails when tried: {error!r}")


def entry_of(method: "Registered") -> Entry:
    """A method at a glance, found by trying it."""
    # Imported here: they load torch, which the list of the built-in methods does without.
    from trinity.methods import sample_layers
    from trinity.methods.caching import CacheMethod
    from trinity.methods.contract import CheckpointSource

    if isinstance(method, CacheMethod):
        config = sample_layers.example_config(method.config, None)
        kept = method.cache_format(config).label if config else "-"
        return Entry(method.paper, _needs(method), kept)
    layout = sample_layers.example_format(method)
    label = "as stored" if isinstance(method, CheckpointSource) else "-"
    return Entry(method.paper, _needs(method), layout.label if layout else label)


def describe_method(name: str) -> dict[str, Any]:
    """A method as plain data: paper, needs, options as a recipe writes them."""
    from trinity.harness.installed import method_options  # as in `entry_of`
    from trinity.methods.caching import CacheMethod

    method = registry.get(name)
    options = method_options.options_of(method.config)
    step = method_options.as_step(name, options, method.config)
    if isinstance(method, CacheMethod):
        step = f"cache: {step.removeprefix('- ')}"
    owner = registry.owners(name)[0]
    return {
        "name": name,
        "owner": owner.distribution,
        "version": owner.version,
        "paper": method.paper,
        "needs": _needs(method),
        "costs": _costs(method),
        "options": {option.name: asdict(option) for option in options},
        "step": step,
        "about": inspect.cleandoc(type(method).__doc__ or ""),
    }


def _needs(method: "Registered") -> str:
    """'x_norm, hessian': the statistics to collect; 'a checkpoint' for a source, 'token sequences'
    for what a whole model is run on.
    """
    from trinity.methods.caching import CacheMethod  # as in `entry_of`
    from trinity.methods.contract import CheckpointSource, ModelMethod
    from trinity.methods.rotations import RotationMethod

    if isinstance(method, CheckpointSource):
        return "a checkpoint"
    if isinstance(method, (ModelMethod, RotationMethod)):
        return "token sequences"
    if isinstance(method, CacheMethod):
        return "nothing"
    return ", ".join(str(flag.name).lower() for flag in method.needs) or "nothing"


def _costs(method: "Registered") -> dict[str, str]:
    """What collecting each statistic takes, in words, with the default options."""
    from trinity.methods.contract import COSTS, Statistic  # as in `entry_of`

    needs: Statistic = getattr(method, "needs", Statistic.NOTHING)
    return {str(flag.name).lower(): COSTS[flag] for flag in needs}


def check_methods(
    name: str, settings: list[str], checkpoint: Path | None = None
) -> dict[str, list[str]]:
    """Contract violations of a method, or of every method that a package registers.

    settings: options of the method, as in a recipe   checkpoint: folder for a source to read
    -> name -> what it breaks, empty if nothing
    """
    options: dict[str, Any] = {}
    for setting in settings:
        recipe.apply_override(options, setting)
    checked = [name] if name in registry.names() else _methods_of(name)
    if (options or checkpoint) and checked != [name]:
        option = "--set" if options else "--checkpoint"
        msg = f"{option}: '{name}' is no method; it is for one method, not for a package."
        raise ConfigError(msg)
    # Imported here: they load torch, which a wrong name is found without.
    from trinity.methods import conformance
    from trinity.methods.contract import CheckpointSource

    given = registry.configure(name, options).model_dump(mode="json") if options else None
    tensors = None
    if checkpoint is not None:
        if not isinstance(registry.get(name), CheckpointSource):
            msg = f"--checkpoint: '{name}' reads no checkpoints."
            raise ConfigError(msg)
        from trinity.harness.compress.imported import stored_tensors

        tensors = stored_tensors(checkpoint)
    found = {}
    for key in checked:
        method = registry.get(key)
        found[key] = conformance.check(method, options=given, tensors=tensors)
        if isinstance(method, CheckpointSource) and tensors is None and not found[key]:
            found[key] += _not_tried(conformance.refusal(method))
    return found


def _not_tried(refusal: str | None) -> list[str]:
    """refusal: what a source says of the checkpoint that was made for it, None if it read it"""
    if refusal is None:
        return []
    return [
        f"nothing was tried: it refuses a checkpoint of 2:4 float weights ({refusal}) Give one "
        f"that it reads: --checkpoint FOLDER"
    ]


def _methods_of(package: str) -> list[str]:
    """What an installed package registers; ConfigError if there is no such package, or nothing."""
    try:
        entries = [e for e in distribution(package).entry_points if e.group == registry.GROUP]
    except PackageNotFoundError as error:
        known = [*registry.names(), PACKAGE]
        msg = (
            f"'{package}' is neither a registered method nor an installed package."
            f"{nearest(package, known)} `trinity methods list` lists the methods; a package is "
            f"installed with pip first."
        )
        raise ConfigError(msg) from error
    names = list(registry.BUILT_IN) if package == PACKAGE else [e.name for e in entries]
    if not names:
        msg = f"package '{package}' registers nothing in the entry-point group '{registry.GROUP}'."
        raise ConfigError(msg)
    return names
