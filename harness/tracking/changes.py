"""What is other in one record than in another, besides its numbers: settings, versions, machine,
code, layers and kernels.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trinity.harness.recipes import recipe
from trinity.harness.records.record import Record
from trinity.methods.errors import ConfigError

Kind = Literal[
    "setting",
    "version",
    "machine",
    "code",
    "data",
    "kernel",
    "layer",
    "format",
    "error",
    "sparsity",
    "bits",
]
_MACHINE = ("machine", "cpu", "cpu_capability", "cores", "threads", "memory_bytes", "gpu")
_LAYER: dict[Kind, str] = {
    "error": "relative_error",
    "sparsity": "sparsity",
    "bits": "bits_per_weight",
}
ABSENT = "absent"


@dataclass(frozen=True)
class Change:
    """One thing that is other.

    before, after: of the baseline and of ours, as text; `absent` where a record has no such thing
    size: how much a number of a layer moved, as a |log ratio| or difference of shares; else 0
    """

    kind: Kind
    what: str
    before: str
    after: str
    size: float = 0.0

    @property
    def text(self) -> str:
        """'setting calibration.samples: 32 -> 16'."""
        return f"{self.kind} {self.what}: {self.before} -> {self.after}"


def between(ours: Record, baseline: Record) -> list[Change]:
    """Everything that is other, kind by kind; layers by how much they moved."""
    return [*causes(ours, baseline), *_kernels(ours, baseline), *_layers(ours, baseline)]


def causes(ours: Record, baseline: Record) -> list[Change]:
    """What a user, a package, a machine or a commit changed: all that is no outcome of the run."""
    return [
        *_differing("setting", _settings(ours), _settings(baseline)),
        *_differing("data", _data(ours), _data(baseline)),
        *_differing("version", _versions(ours), _versions(baseline)),
        *_differing("machine", _machine(ours), _machine(baseline)),
        *_differing("code", code(ours), code(baseline)),
    ]


def code(found: Record) -> dict[str, Any]:
    """Commits of Trinity and of the project, and whether there were changes beside them."""
    environment = found.environment
    project = environment.get("project") or {}
    return {
        "trinity.commit": environment.get("commit"),
        "trinity.changes": environment.get("dirty"),
        "project.commit": project.get("commit"),
        "project.branch": project.get("branch"),
        "project.changes": project.get("dirty"),
    }


def commit(found: Record) -> str | None:
    """The commit that a record is of: the project's that the run was started in, else Trinity's."""
    here = code(found)
    name: str | None = here["project.commit"] or here["trinity.commit"]
    return name


def _settings(found: Record) -> dict[str, Any]:
    """The recipe, flat; what was no option yet when the record was written has its default."""
    try:
        whole = recipe.parse(dict(found.recipe), "recipe").model_dump(mode="json")
    except ConfigError:  # of a version that had other options: compared as it stands
        whole = found.recipe
    return dict(_flat(whole))


def _data(found: Record) -> dict[str, Any]:
    calibration = found.calibration or {}
    return {
        "model.id": found.model.id,
        "model.sha256": found.model.sha256,
        **{f"calibration.{key}": calibration.get(key) for key in ("text_sha256", "ids_sha256")},
    }


def _versions(found: Record) -> dict[str, Any]:
    environment = found.environment
    packages = {**environment.get("packages", {}), **(environment.get("plugins") or {})}
    lowering = found.lowering
    return {
        "python": environment.get("python"),
        **packages,
        "compiler": lowering.compiler if lowering else None,
        **{f"flag {flag}": "given" for flag in (lowering.flags if lowering else ())},
    }


def _machine(found: Record) -> dict[str, Any]:
    return {key: found.environment.get(key) for key in (*_MACHINE, "platform")}


def _kernels(ours: Record, baseline: Record) -> list[Change]:
    """Which code multiplied: the path of every measurement, the kernels of every layer."""
    pair = [_kernels_of(record) for record in (ours, baseline)]
    return _differing("kernel", *pair)


def _kernels_of(found: Record) -> dict[str, Any]:
    paths = {f"path of {m.name} {m.metric} ({m.engine})": m.path for m in found.measurements}
    lowering = found.lowering
    if lowering is None:
        return paths
    layers = {f"layer {name}": path for name, path in lowering.kernels.items()}
    outside = {f"outside {name}": label for name, label in lowering.outside.items()}
    return {"flavour": lowering.flavour, **layers, **outside, **paths}


def _layers(ours: Record, baseline: Record) -> list[Change]:
    """Layers whose error, sparsity, bits or format is other, the largest move first."""
    found = []
    mine, theirs = ours.checkpoint.layers, baseline.checkpoint.layers
    for name in sorted({*mine, *theirs}):
        one, other = mine.get(name), theirs.get(name)
        if one is None or other is None:
            found.append(Change("layer", name, _present(other), _present(one), math.inf))
            continue
        was, now = (layer.get("format", {}).get("label") for layer in (other, one))
        if was != now:
            found.append(Change("format", name, _text(was), _text(now), math.inf))
        for kind, key in _LAYER.items():
            before, after = other.get(key), one.get(key)
            if before != after:
                size = _moved(before, after)
                found.append(Change(kind, name, _text(before), _text(after), size))
    return sorted(found, key=lambda change: -change.size)


def _present(layer: Mapping[str, Any] | None) -> str:
    return ABSENT if layer is None else "there"


def _moved(before: float | None, after: float | None) -> float:
    """|log ratio|; infinite from or to nothing."""
    if not before or not after or not (math.isfinite(before) and math.isfinite(after)):
        return math.inf
    return abs(math.log(after / before))


def _differing(kind: Kind, ours: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Change]:
    names = dict.fromkeys((*baseline, *ours))
    return [
        Change(kind, name, _text(baseline.get(name, ABSENT)), _text(ours.get(name, ABSENT)))
        for name in names
        if baseline.get(name) != ours.get(name)
    ]


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their path: 'compress.steps.0.bits'."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _flat(value, f"{prefix}{key}.")
    elif isinstance(data, list) and data:
        for number, value in enumerate(data):
            yield from _flat(value, f"{prefix}{number}.")
    else:
        yield prefix.rstrip("."), data


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)
