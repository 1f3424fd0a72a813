"""`trinity methods`: what is registered, and whether a plugin conforms."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from trinity.harness.commands.options import Debug, Json, show, show_grid

INDENT = " " * 6

app = typer.Typer(help="What is registered, and whether a plugin conforms.", no_args_is_help=True)


@app.command("list")
def methods_list(as_json: Json = False, debug: Debug = False) -> None:
    """List every registered method.

    Its paper, the statistics that it needs, and what its result is stored as.
    """
    from trinity.harness.installed.registered import list_methods
    from trinity.harness.terminal.grid import Column, Grid
    from trinity.methods.catalogue import OPTIMIZERS

    found = list_methods()
    columns = [Column(name, spare=name == "owner") for name in found[0]]
    # What is wrong with a broken plugin is a sentence, which no column is wide enough for.
    short = [{**row, "format": row["format"].partition(": ")[0]} for row in found]
    notes = [f"{row['name']} {row['format']}" for row in found if ": " in row["format"]]
    notes += [f"{name} ({paper}): {about}" for name, (paper, about) in OPTIMIZERS.items()]
    show_grid(found, as_json, Grid("", columns, [list(row.values()) for row in short], notes))


@app.command("show")
def methods_show(
    name: Annotated[str, typer.Argument(help="A registered method.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Describe a method and its options.

    Its paper, what it needs, and every option with its type and default.
    """
    from trinity.methods import registry

    registry.owner(name)
    # Loads torch: after a name that there is not.
    from trinity.harness.installed.registered import describe_method

    found = describe_method(name)
    show(found, as_json, _described(found))


@app.command("check")
def methods_check(
    name: Annotated[str, typer.Argument(help="A registered method, or an installed package.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="<str>", help="An option of the method. May be repeated."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder for a checkpoint source to read.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a method, or all of a package.

    Against the contract of plugins: docs/adding-a-method.md.
    """
    from trinity.harness.installed.registered import check_methods

    found = check_methods(name, set_ or [], checkpoint)
    lines = []
    for method, wrong in found.items():
        count = f"{len(wrong)} violation{'s' if len(wrong) > 1 else ''}"
        lines.append(f"{method}: {count if wrong else 'conforms'}")
        lines += [f"  {violation}" for violation in wrong]
    show(found, as_json, "\n".join(lines))
    if any(found.values()):
        raise typer.Exit(1)


def _described(method: dict[str, Any]) -> str:
    version = f" {method['version']}" if method["version"] else ""
    lines = [f"{method['name']} ({method['paper']}), registered by {method['owner']}{version}"]
    if method["about"]:
        lines += [method["about"]]
    lines += [f"needs: {method['needs']}"]
    for need, cost in method["costs"].items():
        lines += textwrap.wrap(f"{need}: {cost}", 78, initial_indent="  ", subsequent_indent=INDENT)
    lines += [f"in a recipe: {method['step']}"]
    lines += ["options:"] if method["options"] else ["options: none"]
    for name, option in method["options"].items():
        default = "required" if option["required"] else f"default {option['default']}"
        lines.append(f"  {name}: {option['type']}; {default}")
        lines += textwrap.wrap(option["about"], 76, initial_indent=INDENT, subsequent_indent=INDENT)
    return "\n".join(lines)
