"""`trinity cache`: what the stage store holds, whether it is whole, and what of it may go."""

import time
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, show, show_grid

app = typer.Typer(
    help="What the stage store holds, whether it is whole, and what of it may go.",
    no_args_is_help=True,
)


@app.command("list")
def cache_list(as_json: Json = False, debug: Debug = False) -> None:
    """List the kinds of stages, how much of each there is, and when it was last used."""
    from trinity.harness.store import contents
    from trinity.harness.store.stages import StageStore, default_root
    from trinity.harness.terminal.grid import Column, Grid

    store = StageStore(default_root())
    found, now = contents.stages_of(store.root), time.time()
    rows, data = [], {}
    for kind in sorted({stage.kind for stage in found}):
        of = [stage for stage in found if stage.kind == kind]
        size, days = sum(s.size_bytes for s in of), [(now - s.used_s) / 86_400 for s in of]
        data[kind] = {"stages": len(of), "size_bytes": size, "unused_days": [min(days), max(days)]}
        since = f"{min(days):.0f} to {max(days):.0f}"
        rows.append([kind, str(len(of)), contents.in_units(size), since])
    total, most = sum(stage.size_bytes for stage in found), contents.limit(store.root)
    names = ("stages", "size", "days since used")
    columns = [Column("kind"), *(Column(name, right=True) for name in names)]
    notes = [
        f"{store.root}: {len(found)} stages, {contents.in_units(total)} of the "
        f"{contents.in_units(most)} that it may take ({contents.LIMIT}; without it, half of the "
        f"disk). Beyond that, what was used longest ago is removed when a command starts."
    ]
    result = {"root": str(store.root), "size_bytes": total, "limit_bytes": most, "kinds": data}
    show_grid(result, as_json, Grid("", columns, rows, notes))


@app.command("check")
def cache_check(as_json: Json = False, debug: Debug = False) -> None:
    """Read every stage and compare its hashes.

    Exit code 1 if one is damaged: it is computed again when it is wanted.
    """
    from trinity.harness.store import contents, stages

    store = stages.StageStore(stages.default_root())
    found = contents.stages_of(store.root)
    damaged = {str(s.place): why for s in found if (why := stages.damage(s.place)) is not None}
    lines = [f"{place}: {why}" for place, why in damaged.items()]
    lines.append(f"{store.root}: {len(damaged)} of {len(found)} stages are damaged")
    show({"stages": len(found), "damaged": damaged}, as_json, "\n".join(lines))
    raise typer.Exit(1 if damaged else 0)


@app.command("prune")
def cache_prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="<age>", help="Not used for so long: 12h, 30d, 8w.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="<size>", help="Until so much is left, longest unused first: 20GB."),
    ] = None,
    unreachable: Annotated[
        bool,
        typer.Option("--unreachable", help="Made by code that this version has not any more."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove stages; they are computed again when they are wanted.

    Only while no other command uses the store.
    """
    from trinity.harness.store import contents
    from trinity.harness.store.stages import StageStore, default_root
    from trinity.methods.errors import ConfigError

    if older_than is None and size is None and not unreachable:
        msg = "cache prune: says nothing that may go. Give --older-than, --size or --unreachable."
        raise ConfigError(msg)
    unused_s = contents.age_of(older_than, "--older-than") if older_than else None
    most = contents.size_of(size, "--size") if size else None
    store = StageStore(default_root())
    found = contents.stages_of(store.root)
    gone = contents.to_prune(found, unused_s=unused_s, size_bytes=most, unreachable=unreachable)
    if not dry_run:
        store.remove(stage.place for stage in gone)
    freed = sum(stage.size_bytes for stage in gone)
    done = "would go" if dry_run else "are gone"
    text = f"{store.root}: {len(gone)} of {len(found)} stages {done}, {contents.in_units(freed)}"
    show(
        {"removed": 0 if dry_run else len(gone), "found": len(gone), "bytes": freed}, as_json, text
    )
