"""An audit as tables and as plain data."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trinity.harness.audit.audit import Audit, Place
from trinity.harness.audit.layout import Matrix
from trinity.harness.terminal.grid import Column, Grid

MEGABYTE = 1_000_000
LISTED = 8  # kinds of layers that a note names
COLUMNS = [
    Column("part"),
    Column("stored as"),
    Column("matrices", right=True, spare=1),
    Column("weights", right=True),
    Column("bits/weight", right=True),
    Column("of them scales", right=True),
    Column("MB", right=True),
]


def grids(found: Audit) -> list[Grid]:
    """What it stores, and what is wrong with it."""
    rows = [_row(*part) for part in parts(found)]
    beside = found.total_bytes - sum(_bytes(one) for one in found.matrices)
    rows.append(["norms, biases, rest", "", "", "", "", "", f"{beside / MEGABYTE:.3f}"])
    title = f"{found.path}: {found.layout}, its configuration says {found.claim}"
    stored = Grid(title, COLUMNS, rows, notes(found))
    if not found.faults:
        return [stored]
    wrong = [[fault.layer, fault.what] for fault in found.faults]
    return [stored, Grid("Faults", [Column("where"), Column("what")], wrong)]


def parts(found: Audit) -> Iterator[tuple[str, str, Sequence[Matrix]]]:
    """(part, stored as, matrices), the layers of each form first, sums last."""
    for place in Place:
        here = found.at(place)
        for form in sorted({matrix.form for matrix in here}):
            yield place.value, form, [matrix for matrix in here if matrix.form == form]
    yield "all layers", "", found.at(Place.LAYERS)
    yield "all matrices", "", found.matrices


def notes(found: Audit) -> list[str]:
    """What to know beside the table."""
    said = []
    if found.layout != "dense" and (dense := found.left_dense):
        kinds = Counter(re.sub(r"\d+", "*", matrix.name) for matrix in dense)
        names = [f"{name} ({count})" for name, count in kinds.items()]
        more = f" and {len(names) - LISTED} kinds more" if len(names) > LISTED else ""
        said.append(f"left dense: {', '.join(names[:LISTED])}{more}")
    if not found.at(Place.HEAD):
        said.append("head: none is stored; the embeddings take its place")
    if found.undecoded:
        said.append(
            f"counted, not looked into (a type that cannot be decoded here): "
            f"{len(found.undecoded)} matrices, {found.undecoded[0]} first"
        )
    count = len(found.faults)
    said.append(f"{count} fault{'s' if count > 1 else ''}" if count else "no fault found")
    return said


def data(found: Audit) -> dict[str, Any]:
    """For programs (values of several types, hence Any)."""
    return {
        "path": str(found.path),
        "layout": found.layout,
        "claim": found.claim,
        "total_bytes": found.total_bytes,
        "parts": [_part(*part) for part in parts(found)],
        "left_dense": [matrix.name for matrix in found.left_dense],
        "undecoded": list(found.undecoded),
        "faults": [{"layer": fault.layer, "what": fault.what} for fault in found.faults],
    }


def _part(part: str, form: str, matrices: Sequence[Matrix]) -> dict[str, Any]:
    weights, size = _weights(matrices), sum(map(_bytes, matrices))
    beside = sum(matrix.beside_bytes for matrix in matrices)
    return {
        "part": part,
        "stored_as": form,
        "matrices": len(matrices),
        "weights": weights,
        "bytes": size,
        "bits_per_weight": size * 8 / weights if weights else None,
        "beside_bits_per_weight": beside * 8 / weights if weights else None,
    }


def _row(part: str, form: str, matrices: Sequence[Matrix]) -> list[str]:
    said = _part(part, form, matrices)
    bits, beside = said["bits_per_weight"], said["beside_bits_per_weight"]
    return [
        part,
        form,
        f"{len(matrices):,}",
        f"{said['weights']:,}",
        "" if bits is None else f"{bits:.2f}",
        "" if not beside else f"{beside:.2f}",
        f"{said['bytes'] / MEGABYTE:.3f}",
    ]


def _weights(matrices: Sequence[Matrix]) -> int:
    return sum(matrix.weights for matrix in matrices)


def _bytes(matrix: Matrix) -> int:
    return matrix.value_bytes + matrix.beside_bytes
