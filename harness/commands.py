"""What the small commands do: one checkpoint, one suite, one question."""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from trinity.harness import checkpoint, exporting, paper, recipe, sources
from trinity.harness.compiled import (
    PARAMETERS,
    Subject,
    compile_module,
    module_bits,
    plan_of,
    write_parameters,
)
from trinity.harness.measure import Measuring, check_machine
from trinity.harness.models import dtype_name, read_config
from trinity.harness.progress import Reporter
from trinity.harness.records import record
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.judged import Cell
from trinity.harness.repro import Reproduced, planned_rows, write_table
from trinity.harness.run import Run
from trinity.harness.store import MANIFEST, StageStore, make_folder
from trinity.harness.walk import TIMING
from trinity.methods import conformance, registry, sample_layers
from trinity.methods.contract import (
    BlockMethod,
    CheckpointSource,
    Method,
    ModelMethod,
    Registered,
)
from trinity.methods.errors import ConfigError, nearest

OWN_PACKAGE = "compression-trinity"
EMITTED = ("torch", "annotated", "storage", "target", "vmfb")


def compress_to(
    model: str,
    method: str,
    settings: list[str],
    dtype: str,
    out: Path,
    store: StageStore,
    reporter: Reporter,
) -> dict[str, Any]:
    """One method on one model, into a new folder.

    settings: method options, or calibration.KEY=value
    """
    check_new(out)
    found = registry.get(method)
    step: dict[str, Any] = {"method": method}
    data: dict[str, Any] = {
        "name": method,
        "model": {"id": model, "dtype": dtype},
        "compress": {"steps": [step]},
    }
    for setting in settings:
        recipe.apply_override(data if setting.startswith("calibration.") else step, setting)
    if isinstance(found, (Method, BlockMethod)) and found.needs:
        data.setdefault("calibration", {})
    if isinstance(found, CheckpointSource) and "calibration" in data:
        msg = f"method '{method}' reads finished checkpoints and uses no calibration data."
        raise ConfigError(msg)
    finished = Run(recipe.parse(data, "trinity compress"), store, reporter).checkpoint
    # A copy, not links: what a user does to it must not reach the store.
    ignore = shutil.ignore_patterns(MANIFEST, TIMING)
    make_folder(out, lambda folder: shutil.copytree(finished, folder, ignore=ignore))
    compressed = checkpoint.Checkpoint(out)
    result = {
        "checkpoint": str(out),
        "bits_per_weight": compressed.bits_per_weight,
        "layers": len(compressed.formats),
    }
    imported = compressed.summary.get("imported")
    if imported:
        result |= {key: imported[key] for key in ("dense", "unmapped")}
    return result


def measuring_of(
    model: str, lower: recipe.LowerSpec | None, store: StageStore, reporter: Reporter
) -> Measuring:
    """Engines of a compressed checkpoint, or of any plain model taken as it is."""
    folder = Path(model)
    if checkpoint.is_compressed(folder):
        subject = Subject(folder, sources.folder_sha256(folder), folder.name)
        return Measuring(
            subject, lower, store, reporter, lambda: _dense_of(folder, lower, store, reporter)
        )
    data = {"name": "dense", "model": {"id": model}, "lower": lower.model_dump() if lower else None}
    return Run(recipe.parse(data, model), store, reporter).measuring


def _dense_of(
    folder: Path, lower: recipe.LowerSpec | None, store: StageStore, reporter: Reporter
) -> Measuring:
    """The model that a checkpoint was compressed from, by the id and hash that it carries."""
    made_from = checkpoint.Checkpoint(folder).summary["model"]
    found = sources.resolve(made_from["id"], None, store)
    if found.sha256 != made_from["sha256"]:
        msg = (
            f"checkpoint {folder}: was made from '{made_from['id']}' with sha256 "
            f"{made_from['sha256'][:12]}, and the model of that name here has "
            f"{found.sha256[:12]}: they cannot be compared. Get the model it was made from."
        )
        raise ConfigError(msg)
    data = {
        "name": "dense",
        "model": {"id": made_from["id"], "dtype": dtype_name(read_config(folder))},
        "lower": lower.model_dump() if lower else None,
    }
    return Run(recipe.parse(data, made_from["id"]), store, reporter).measuring


def evaluate_model(
    model: str,
    suites: list[str],
    sizes: dict[str, int | None],
    engine: str,
    target: str,
    store: StageStore,
    reporter: Reporter,
) -> list[Measurement]:
    """Accuracy suites on one model."""
    data = {"suites": [{"suite": suite, **sizes} for suite in suites], "engine": engine}
    spec = recipe.parse({"model": {"id": model}, "evaluate": data}, "trinity eval").evaluate
    assert spec is not None
    lower = recipe.LowerSpec(target=target) if engine == "iree" else None
    check_machine(spec, lower)
    return measuring_of(model, lower, store, reporter).evaluate(spec)


def bench_model(
    model: str,
    suites: list[str],
    engines: list[str],
    target: str,
    context: int,
    settings: dict[str, Any],
    store: StageStore,
    reporter: Reporter,
) -> list[Measurement]:
    """Latency and memory suites on one model.

    target, context: of the module   settings: further keys of a recipe's `bench:`
    """
    data: dict[str, Any] = {
        "model": {"id": model},
        "lower": {"target": target, "context": context},
        "bench": {"suites": suites, **settings},
    }
    read = recipe.parse(data, "trinity bench")
    spec = read.bench
    assert spec is not None
    unknown = sorted(set(engines) - {"torch", "iree"})
    if unknown:
        msg = f"--engine {', '.join(unknown)}: expected torch or iree."
        raise ConfigError(msg)
    lower = read.lower if "iree" in engines else None
    check_machine(None, lower)
    return measuring_of(model, lower, store, reporter).bench(spec, engines)


def lower_to(
    folder: Path,
    target: str,
    emit: str | None,
    length: int,
    context: int,
    out: Path,
    store: StageStore,
    reporter: Reporter,
) -> dict[str, Any]:
    """Compile a checkpoint into a new folder: module, parameters, and one stage's text if asked."""
    check_new(out)
    if emit not in (None, *EMITTED):
        msg = f"--emit {emit}: expected one of {', '.join(EMITTED)}."
        raise ConfigError(msg)
    compressed = checkpoint.Checkpoint(folder)
    sizes = {"target": target, "length": length, "context": context}
    spec = recipe.parse({"model": {"id": str(folder)}, "lower": sizes}, "trinity lower").lower
    assert spec is not None
    plan = plan_of(folder, spec)
    module = compile_module(folder, plan, store, reporter)
    parameters = write_parameters(folder, module, plan, store, sources.folder_sha256(folder))
    names = ["module.vmfb", "module.json"]
    if emit and emit != "vmfb":
        names.append(f"{emit}.mlir")

    def fill(folder: Path) -> None:
        folder.mkdir()
        for name in names:
            shutil.copyfile(module / name, folder / name)
        shutil.copyfile(parameters / PARAMETERS, folder / PARAMETERS)

    make_folder(out, fill)
    return {
        "target": target,
        "files": ", ".join(sorted(path.name for path in out.iterdir())),
        "bits_per_weight_checkpoint": round(compressed.bits_per_weight, 4),
        "bits_per_weight_module": round(module_bits(plan), 4),
    }


def export_to(folder: Path, layout: str, out: Path) -> dict[str, Any]:
    """A compressed checkpoint in another program's layout, in a new folder."""
    check_new(out)
    exporting.export(folder, layout, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"checkpoint": str(out), "format": layout, "size_bytes": size}


def render_tables(paper_name: str, profile_name: str, out: Path) -> list[Reproduced]:
    """Tables from the newest record of each row's own compression; ConfigError if there is none."""
    definition = paper.load(paper_name)
    profile = paper.pick("profile", profile_name, definition.profiles)
    records = [(path, record.read(path)) for path in sorted((out / "v1").rglob("*.json"))]
    results = []
    for key, table in definition.tables.items():
        for model in definition.profiles[profile_name].models:
            newest = {
                found.recipe["name"]: (path, found)
                for path, found in sorted(records, key=lambda pair: record.age(*pair))
                if found.model.id == model
            }
            cells = []
            for row, pattern in planned_rows(table, ("*",)):
                planned = [
                    paper.recipe(profile, data, model, table, row, pattern) for data in profile.data
                ]
                compress = [p.model_dump(mode="json")["compress"] for p in planned]
                # A row that has come to compress otherwise is another row, whatever its name.
                if (name := planned[0].name) in newest and _compress(newest[name][1]) in compress:
                    path, found = newest[name]
                    cells.append(Cell(row, pattern, found, str(path.relative_to(out))))
            # Tables share dense rows: one alone says nothing of this table.
            if any(cell.row.steps for cell in cells):
                results.append(write_table(definition, key, profile_name, cells, out, ""))
    if not results:
        msg = (
            f"{out / 'v1'}: holds no record of paper '{paper_name}', profile '{profile_name}'. "
            f"Run `trinity repro {paper_name} --profile {profile_name}` first."
        )
        raise ConfigError(msg)
    return results


def list_methods() -> list[dict[str, str]]:
    """Every registered method: name, paper, needs, format of its result, owner."""
    return [
        {"name": name, **_summary(name), "owner": registry.owner(name)} for name in registry.names()
    ]


def _summary(name: str) -> dict[str, str]:
    try:
        method = registry.get(name)
    except ConfigError as error:
        # One broken plugin must not hide the others; using it raises.
        return {"paper": "-", "needs": "-", "format": f"cannot be loaded: {error}"}
    layout = sample_layers.example_format(method)
    label = "as stored" if isinstance(method, CheckpointSource) else "-"
    return {
        "paper": method.paper,
        "needs": _needs(method),
        "format": layout.label if layout else label,
    }


def describe_method(name: str) -> dict[str, Any]:
    """A method as plain data: paper, needs, options with their defaults."""
    method = registry.get(name)
    options = {}
    for key, field in method.config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        options[key] = "required" if field.is_required() else f"default {default!r}"
    return {
        "name": name,
        "owner": registry.owner(name),
        "paper": method.paper,
        "needs": _needs(method),
        "options": options,
        "about": (type(method).__doc__ or "").strip(),
    }


def _needs(method: Registered) -> str:
    """'x_norm, hessian': the statistics to collect; 'a checkpoint' for a source."""
    if isinstance(method, CheckpointSource):
        return "a checkpoint"
    if isinstance(method, ModelMethod):
        return "token sequences"
    return ", ".join(str(flag.name).lower() for flag in method.needs) or "nothing"


def check_methods(name: str, settings: list[str]) -> dict[str, list[str]]:
    """Contract violations of a method, or of every method that a package registers.

    settings: options of the method, as in a recipe; -> name -> what it breaks, empty if nothing
    """
    options: dict[str, Any] = {}
    for setting in settings:
        recipe.apply_override(options, setting)
    if name in registry.names():
        config = registry.configure(name, options) if options else None
        given = config.model_dump(mode="json") if config else None
        return {name: conformance.check(registry.get(name), options=given)}
    if options:
        msg = f"--set: '{name}' is no method; options are those of one method, not of a package."
        raise ConfigError(msg)
    try:
        entries = [e for e in distribution(name).entry_points if e.group == registry.GROUP]
    except PackageNotFoundError as error:
        known = [*registry.names(), OWN_PACKAGE]
        msg = (
            f"'{name}' is neither a registered method nor an installed package."
            f"{nearest(name, known)} `trinity methods list` lists the methods; a package is "
            f"installed with pip first."
        )
        raise ConfigError(msg) from error
    checked = [entry.name for entry in entries]
    if name == OWN_PACKAGE:
        checked = list(registry.BUILT_IN)
    if not checked:
        msg = f"package '{name}' registers nothing in the entry-point group '{registry.GROUP}'."
        raise ConfigError(msg)
    return {key: conformance.check(registry.get(key)) for key in checked}


def _compress(found: record.Record) -> dict[str, Any]:
    """A record's `compress`; what was no option yet when it was written had its default."""
    return {**recipe.CompressSpec().model_dump(mode="json"), **found.recipe["compress"]}


def check_new(out: Path) -> None:
    """ConfigError if a folder to be written has something in it: nothing a user made is
    overwritten.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"--out {out}: exists and is not an empty folder. Choose another, or remove it."
        raise ConfigError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
