"""`trinity bisect`: the commits between two records."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, show


def bisect(
    good: Annotated[Path, typer.Argument(help="The last record that was well.")],
    bad: Annotated[Path, typer.Argument(help="The first that was not.")],
    policy: Annotated[
        Path, typer.Option(help="The gate that tells a good commit from a bad one.")
    ] = Path("gate.yaml"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the commits between two records.

    And print the command that tests one; nothing is checked out or run.
    """
    from trinity.harness.records import record
    from trinity.harness.tracking import bisecting

    records = record.read(good), record.read(bad)
    found = bisecting.between(good, bad, records, str(policy))
    lines = [f"{len(found.commits)} commits in {found.repository}, the oldest first:"]
    lines += [f"  {commit[:12]}  {day}  {subject}" for commit, day, subject in found.commits]
    lines += ["", "to test the commit that is checked out:", f"  {found.test}"]
    lines += ["", "to let git find the first bad one:", *(f"  {line}" for line in found.session)]
    show(asdict(found), as_json, "\n".join(lines))
