"""The command line.  Commands import what they need when they run, so that `--help` is instant."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="trinity",
    help="Compress language models, run them packed, and reproduce the papers' tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
methods_app = typer.Typer(
    help="What is registered, and whether a plugin conforms.", no_args_is_help=True
)
app.add_typer(methods_app, name="methods")

Json = Annotated[bool, typer.Option("--json", help="Print the result, alone, as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Add the traceback to an error.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for what is made.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one field: key.path=value. May be repeated."),
]
Target = Annotated[str, typer.Option(help="llvm-cpu, vulkan, cuda or rocm.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute every stage again.")]
EngineName = Annotated[str, typer.Option("--engine", help="torch or iree.")]
Suites = Annotated[
    list[str] | None,
    typer.Option("--suite", help="Accuracy suite for models; records need none. May be repeated."),
]
Limit = Annotated[int | None, typer.Option(help="Examples of each task.")]
Windows = Annotated[int | None, typer.Option(help="Windows of a text.")]
Seqlen = Annotated[int | None, typer.Option(help="Tokens of a window.")]
INTERRUPTED = 130


def main() -> None:
    """Run the command line; every expected error is one paragraph and an exit code."""
    debug = "--debug" in sys.argv
    # Read by tqdm when it is first imported; transformers' GGUF reader has no switch of its own.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        # Imported here: a healthy `--help` never needs it.
        from trinity.methods.errors import TrinityError

        if debug or not isinstance(error, TrinityError):
            raise
        print(f"trinity: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _start(quiet: bool) -> Any:
    """The reporter of a command, warnings of the libraries turned to log lines."""
    from trinity.harness.progress import Reporter

    level = logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    from trinity.harness.quiet import hush_libraries

    hush_libraries()
    return Reporter(quiet=quiet)


def _store(fresh: bool = False) -> Any:
    from trinity.harness.store import StageStore, default_root

    return StageStore(default_root(), fresh=fresh)


def _show(data: Any, as_json: bool, text: str) -> None:
    print(json.dumps(data, indent=1, sort_keys=True) if as_json else text)


def _show_measurements(found: list[Any], as_json: bool) -> None:
    """found: Measurements, whose class is loaded by then."""
    text = "\n".join(map(_measurement_line, found))
    _show([m.model_dump(mode="json") for m in found], as_json, text)


@app.command()
def repro(
    paper: Annotated[str, typer.Argument(help="Which paper, for example slim.")],
    table: Annotated[
        str | None,
        typer.Option(help="One table, for example table5; else those that the profile names."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="smoke, embedded or paper; embedded where there is no GPU."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Glob over row names, for example 'slim-lora*'.")] = "*",
    out: Out = Path("results"),
    fresh: Fresh = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Regenerate a paper's tables."""
    from trinity.harness.repro import reproduce

    with _start(quiet) as reporter:
        results = reproduce(paper, table, profile, rows, out, _store(fresh), reporter)
    files = [[str(path) for path in result.files] for result in results]
    text = "\n".join(result.markdown for result in results)
    written = "\n".join(f"written: {path}" for paths in files for path in paths)
    models = [{"model": r.model, "files": f} for r, f in zip(results, files, strict=True)]
    _show({"tables": models}, as_json, f"{text}\n{written}")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    set_: Set = None,
    out: Out = Path("results"),
    fresh: Fresh = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run one recipe: compress, lower, evaluate, time, record."""
    from trinity.harness import recipe as recipes
    from trinity.harness.records import record
    from trinity.harness.run import Run

    with _start(quiet) as reporter:
        finished = Run(recipes.read(recipe, set_ or []), _store(fresh), reporter).finish()
    path = record.write(finished.record, out)
    lines = [_measurement_line(m) for m in finished.record.measurements]
    text = "\n".join([*lines, f"checkpoint: {finished.checkpoint}", f"record: {path}"])
    _show({"record": str(path), "checkpoint": str(finished.checkpoint)}, as_json, text)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or package:NAME.")],
    method: Annotated[str, typer.Option(help="A registered method; see `trinity methods list`.")],
    out: Out,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A method option, or calibration.KEY=value. May be repeated."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a compressed checkpoint, nothing else."""
    from trinity.harness.commands import compress_to

    with _start(quiet) as reporter:
        result = compress_to(model, method, set_ or [], dtype, out, _store(), reporter)
    text = f"{out}: {result['bits_per_weight']:.3f} bits per weight, {result['layers']} layers"
    for key, words in (("dense", "linears left dense"), ("unmapped", "tensors not mapped")):
        if result.get(key):
            text += f"\n{words} ({len(result[key])}): {', '.join(result[key])}"
    _show(result, as_json, text)


@app.command()
def lower(
    checkpoint: Annotated[Path, typer.Argument(help="A folder made by `trinity compress`.")],
    out: Out,
    target: Target = "llvm-cpu",
    emit: Annotated[
        str | None,
        typer.Option(help="Also write a stage: torch, annotated, storage, target or vmfb."),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens that a prefill call takes.")] = 128,
    context: Annotated[int, typer.Option(help="Positions of the key/value cache.")] = 2048,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compile a compressed checkpoint."""
    from trinity.harness.commands import lower_to

    with _start(quiet) as reporter:
        result = lower_to(checkpoint, target, emit, length, context, out, _store(), reporter)
    _show(result, as_json, "\n".join(f"{key}: {value}" for key, value in result.items()))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder made by `trinity compress`.")],
    out: Out,
    layout: Annotated[
        str, typer.Option("--format", help="gptq, gptq_v2 or huggingface (dequantized).")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a compressed checkpoint as other programs read it."""
    from trinity.harness.commands import export_to

    with _start(quiet):
        result = export_to(checkpoint, layout, out)
    text = f"{out}: {result['format']}, {result['size_bytes']} bytes"
    _show(result, as_json, text)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A compressed checkpoint, or any model.")],
    suite: Annotated[list[str], typer.Option(help="Accuracy suite. May be repeated.")],
    engine: EngineName = "torch",
    target: Target = "llvm-cpu",
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy, in torch or on the compiled module."""
    from trinity.harness.commands import evaluate_model

    sizes = {"limit": limit, "windows": windows, "seqlen": seqlen}
    with _start(quiet) as reporter:
        found = evaluate_model(model, suite, sizes, engine, target, _store(), reporter)
    _show_measurements(found, as_json)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="A compressed checkpoint, or any model.")],
    suite: Annotated[
        list[str],
        typer.Option(help="prefill, decode, memory, compress or layers. May be repeated."),
    ],
    engine: Annotated[
        list[str] | None, typer.Option(help="torch, iree; both if not given.")
    ] = None,
    target: Target = "llvm-cpu",
    prompt: Annotated[int, typer.Option(help="Prompt tokens.")] = 128,
    new: Annotated[int, typer.Option(help="New tokens of a decode.")] = 32,
    repeats: Annotated[int, typer.Option(help="Kept samples of each engine.")] = 5,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Sequences at once, of prefill and decode. May be repeated."),
    ] = None,
    context: Annotated[int, typer.Option(help="Positions of the module's caches.")] = 2048,
    baseline: Annotated[
        str | None,
        typer.Option(help="dense: time the model before compression in turn, and compare."),
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(help="Tokens at once, of suite layers. May be repeated.")
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="Of suite layers: model, llama-2-7b, -13b, -70b or opt-6.7b.")
    ] = "model",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure latency and memory, engines interleaved."""
    from trinity.harness.commands import bench_model

    engines = engine or ["torch", "iree"]
    settings: dict[str, Any] = {"prompt": prompt, "new": new, "repeats": repeats}
    settings |= {"baseline": baseline, "rows": rows or [1], "shapes": shapes}
    settings |= {"batch": batch or [1]}
    with _start(quiet) as reporter:
        found = bench_model(model, suite, engines, target, context, settings, _store(), reporter)
    _show_measurements(found, as_json)


@app.command()
def compare(
    ours: Annotated[str, typer.Argument(help="A record, or a compressed checkpoint or model.")],
    baseline: Annotated[str, typer.Argument(help="What it is compared with, of the same kind.")],
    suite: Suites = None,
    engine: EngineName = "torch",
    target: Target = "llvm-cpu",
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two records, or two models on the same samples: paired tests, Holm-corrected."""
    from trinity.harness import comparing

    sizes = {"limit": limit, "windows": windows, "seqlen": seqlen}
    how = comparing.Evaluation(tuple(suite or ()), sizes, engine, target)
    with _start(quiet) as reporter:
        found = comparing.compare_two(ours, baseline, how, _store(), reporter)
    _show(comparing.as_json(found), as_json, "\n".join(map(comparing.line, found)))


@app.command()
def gate(
    baseline: Annotated[str, typer.Option(help="A record, or a compressed checkpoint or model.")],
    ours: Annotated[
        str | None,
        typer.Argument(help="What is judged; the newest record of the same recipe if left out."),
    ] = None,
    suite: Suites = None,
    engine: EngineName = "torch",
    target: Target = "llvm-cpu",
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    margin_perplexity: Annotated[
        float, typer.Option(min=0.0, help="Share of the baseline's.")
    ] = 0.0,
    margin_accuracy: Annotated[
        float, typer.Option(min=0.0, help="Difference; 0.01 is one point.")
    ] = 0.0,
    margin_divergence: Annotated[float, typer.Option(min=0.0, help="Nats a token.")] = 0.0,
    margin_speed: Annotated[
        float, typer.Option(min=0.0, help="Share of the baseline's speed-up.")
    ] = 0.0,
    margin_size: Annotated[
        float, typer.Option(min=0.0, help="Share of the baseline's bytes.")
    ] = 0.0,
    out: Out = Path("results"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Exit with 1 if something got significantly worse, beyond a margin."""
    from trinity.harness import comparing

    sizes = {"limit": limit, "windows": windows, "seqlen": seqlen}
    how = comparing.Evaluation(tuple(suite or ()), sizes, engine, target)
    margins = comparing.Margins(
        perplexity=margin_perplexity,
        accuracy=margin_accuracy,
        divergence=margin_divergence,
        speed=margin_speed,
        size=margin_size,
    )
    with _start(quiet) as reporter:
        judged = ours or comparing.newest_like(baseline, out)
        found = comparing.compare_two(judged, baseline, how, _store(), reporter)
    failed = comparing.gate(found, margins)
    lines = [comparing.line(o) for o in found]
    lines += [f"FAILED {o.name} {o.metric} ({o.engine}): {why}" for o, why in failed]
    lines += [] if failed else [f"passed: {judged} against {baseline}"]
    data = {
        "passed": not failed,
        "failed": [{"name": o.name, "metric": o.metric, "why": why} for o, why in failed],
        "outcomes": comparing.as_json(found),
    }
    _show(data, as_json, "\n".join(lines))
    if failed:
        raise typer.Exit(1)


@app.command()
def table(
    paper: Annotated[str, typer.Argument(help="Which paper, for example slim.")],
    profile: Annotated[str, typer.Option(help="smoke, embedded or paper.")] = "embedded",
    out: Out = Path("results"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render a paper's tables again from the records that are there; measures nothing."""
    from trinity.harness.commands import render_tables

    results = render_tables(paper, profile, out)
    files = [str(path) for result in results for path in result.files]
    _show({"files": files}, as_json, "\n".join(result.markdown for result in results))


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine can do."""
    from trinity.harness.doctor import diagnose

    found = diagnose()
    width = max(len(key) for key in found)
    _show(found, as_json, "\n".join(f"{key:<{width}}  {value}" for key, value in found.items()))


@methods_app.command("list")
def methods_list(as_json: Json = False, debug: Debug = False) -> None:
    """Every registered method: paper, statistics it needs, what its result is stored as."""
    from trinity.harness.commands import list_methods

    found = list_methods()
    _show(found, as_json, _table(found))


@methods_app.command("show")
def methods_show(name: str, as_json: Json = False, debug: Debug = False) -> None:
    """A method's paper, what it needs, and its options with their defaults."""
    from trinity.harness.commands import describe_method

    found = describe_method(name)
    _show(found, as_json, _described(found))


@methods_app.command("check")
def methods_check(
    name: Annotated[str, typer.Argument(help="A registered method, or an installed package.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the method. May be repeated.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the contract's checks on a method, or on every method of a package."""
    from trinity.harness.commands import check_methods

    found = check_methods(name, set_ or [])
    lines = []
    for method, wrong in found.items():
        lines.append(f"{method}: {f'{len(wrong)} violations' if wrong else 'conforms'}")
        lines += [f"  {violation}" for violation in wrong]
    _show(found, as_json, "\n".join(lines))
    if any(found.values()):
        raise typer.Exit(1)


def _table(rows: list[dict[str, str]]) -> str:
    """Rows with equal keys as aligned columns under a heading."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _described(method: dict[str, Any]) -> str:
    lines = [f"{method['name']} ({method['paper']}), registered by {method['owner']}"]
    lines += [f"needs: {method['needs']}", "options:"]
    lines += [f"  {name}: {text}" for name, text in method["options"].items()]
    return "\n".join(lines)


def _measurement_line(m: Any) -> str:
    """One measurement as a line; m: a Measurement, whose class is loaded by then."""
    value = f"not measured: {m.reason}" if m.value is None else f"{m.value:.6g} {m.unit}"
    interval = f" [{m.interval.low:.6g}, {m.interval.high:.6g}]" if m.interval else ""
    return f"{m.name} {m.metric}: {value}{interval} ({m.engine}, {m.path}, n={len(m.samples)})"


if __name__ == "__main__":
    main()
