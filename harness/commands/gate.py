"""`trinity gate`: whether something got worse."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trinity.harness.commands.options import (
    Debug,
    DenseModel,
    EngineName,
    Json,
    Limit,
    Quiet,
    Seqlen,
    Suites,
    Target,
    Windows,
    from_home,
    show_grid,
    start,
    store,
)

if TYPE_CHECKING:
    from trinity.harness.statistics.comparison import Outcome
    from trinity.harness.tracking.comparing import Evaluation, Margins


def gate(
    baseline: Annotated[
        str,
        typer.Option(
            help="A record, or a compressed checkpoint or model; with --policy a record, a folder "
            "of records, a git commit, last:N[:branch=NAME|:machine=NAME], or run:COMMIT."
        ),
    ],
    ours: Annotated[
        str | None,
        typer.Argument(
            help="What is judged; if left out the newest record of the same recipe, and with "
            "--policy runs that are made now."
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A gate.yaml: recipes, checks and what they let through.")
    ] = None,
    suite: Suites = None,
    engine: EngineName = "torch",
    target: Target = "llvm-cpu",
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    dense: DenseModel = None,
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
    out: Annotated[
        Path | None,
        typer.Option(
            callback=from_home,
            help="Folder of records: results; with --policy that for new records and the gate's "
            "files: gate-results.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fail if something got significantly worse.

    Exit code 1 if its whole interval is beyond the margin, 4 if nothing could be judged.
    """
    from trinity.harness.tracking import comparing

    sizes = {"limit": limit, "windows": windows, "seqlen": seqlen}
    how = comparing.Evaluation(tuple(suite or ()), sizes, engine, target, dense)
    margins = comparing.Margins(
        perplexity=margin_perplexity,
        accuracy=margin_accuracy,
        divergence=margin_divergence,
        speed=margin_speed,
        size=margin_size,
    )
    if policy is not None:
        _only_records(how, margins)
        _by_policy(policy, baseline, ours, out or Path("gate-results"), as_json, quiet)
        return
    with start(quiet) as reporter:
        judged = ours or comparing.newest_like(baseline, out or Path("results"))
        found = comparing.compare_two(judged, baseline, how, store(), reporter)
    _show(judged, baseline, found, comparing.gate(found, margins), as_json)


def _show(
    judged: str,
    baseline: str,
    found: "list[Outcome]",
    failed: "list[tuple[Outcome, str]]",
    as_json: bool,
) -> None:
    from trinity.harness.report import compared
    from trinity.harness.tracking import comparing

    notes = [f"FAILED {o.name} {o.metric} ({o.engine}): {why}" for o, why in failed]
    notes = notes or [f"passed: {judged} against {baseline}"]
    data = {
        "passed": not failed,
        "failed": [{"name": o.name, "metric": o.metric, "why": why} for o, why in failed],
        "outcomes": comparing.as_json(found),
    }
    show_grid(data, as_json, replace(compared.grid(found), notes=notes))
    if failed:
        raise typer.Exit(1)


def _only_records(how: "Evaluation", margins: "Margins") -> None:
    from trinity.harness.tracking import comparing
    from trinity.methods.errors import ConfigError

    plain = comparing.Evaluation((), dict.fromkeys(how.sizes))
    if how != plain or margins != comparing.Margins():
        msg = (
            "gate --policy: what is measured stands in the recipes and what is let through in the "
            "policy. Leave --suite, --engine, --target, --dense, sizes and margins out."
        )
        raise ConfigError(msg)


def _by_policy(
    place: Path, baseline: str, ours: str | None, out: Path, as_json: bool, quiet: bool
) -> None:
    from trinity.harness.tracking import gate_files, gating

    with start(quiet) as reporter:
        found = gating.gate(place, baseline, ours, out, quiet, reporter)
    gate_files.write(found, out)
    show_grid(gate_files.data(found), as_json, gate_files.grid(found))
    if found.exit_code:
        raise typer.Exit(found.exit_code)
