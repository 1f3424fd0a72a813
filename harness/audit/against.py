"""How far each matrix of a checkpoint is from the dense model's, and which are wrong by that.

The error of a matrix is |W' - W| / |W| (Frobenius).  A program that moves scales between layers on
purpose (AWQ, SmoothQuant) moves weights with them, so errors are judged beside those of neighbours
in the same form alone, and what the model says of text is judged by suites.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from trinity.harness.audit import faults as found_in
from trinity.harness.audit import gguf
from trinity.harness.audit.audit import Audit, Place, place_of
from trinity.harness.audit.layout import Fault
from trinity.harness.models.decoder import Decoder

ZERO = 1.0  # the error of a matrix of zeros
FACTOR_OF_ZERO = 2.0  # that a matrix as bad as zeros is above its neighbours


@dataclass(frozen=True)
class Error:
    """Of one matrix.  layer: as the model calls it   form: in which the checkpoint stores it"""

    layer: str
    form: str
    relative: float


def errors(found: Audit, plain: Decoder, dense: Decoder) -> list[Error]:
    """Of every matrix of the model, in its order; stacks of experts one by one.

    plain: the checkpoint as plain floats   dense: the model that it was made from
    """
    forms = _forms(found, plain)
    listed = []
    for name, stored in plain.tensor_names.items():
        if name not in dense.tensor_names or len(plain.reader.entries[stored].shape) < 2:
            continue
        ours, theirs = plain.reader.read(stored), dense.reader.read(dense.tensor_names[name])
        layer = name.removesuffix(".weight")
        if ours.ndim == 2:
            listed.append(Error(layer, forms.get(layer, ""), _relative(ours, theirs)))
            continue
        stacks = (one.reshape(-1, *one.shape[-2:]) for one in (ours, theirs))
        listed += [
            Error(f"{layer}.{number}", forms.get(layer, ""), _relative(one, other))
            for number, (one, other) in enumerate(zip(*stacks, strict=True))
        ]
    return listed


def outliers(found: Sequence[Error]) -> list[Fault]:
    """Layers whose error is ten times that of most of the nearest of their kind and form, or as
    large as a matrix of zeros has, and twice that of most of them.
    """
    kinds: dict[tuple[str, str], list[Error]] = defaultdict(list)
    for error in found:
        if place_of(error.layer) is Place.LAYERS:
            kinds[found_in.NUMBER.sub("*", error.layer), error.form].append(error)
    faults = []
    for kind in kinds.values():
        kind.sort(key=lambda error: found_in.numbers(error.layer))
        for at, error in enumerate(kind):
            near = sorted(other.relative for other in found_in.nearest(kind, at))
            factor = FACTOR_OF_ZERO if error.relative >= ZERO else found_in.FACTOR
            far = [other for other in near if error.relative >= factor * other]
            if len(near) < found_in.FEWEST or len(far) * 2 <= len(near) or not error.relative:
                continue
            what = (
                f"its error against the dense weights is {error.relative:.3g}, its neighbours' "
                f"{near[len(near) // 2]:.3g}"
            )
            faults.append(Fault(error.layer, what))
    return faults


def _forms(found: Audit, plain: Decoder) -> dict[str, str]:
    """In which form each layer of the model is stored."""
    names = {
        name.removesuffix(".weight"): stored.removesuffix(".weight")
        for name, stored in plain.stored.items()
    }
    if found.layout == gguf.Gguf.name:
        names = gguf.names_of(found.path, names, len(plain.blocks))
    forms = {matrix.name: matrix.form for matrix in found.matrices}
    return {layer: forms.get(name, "") for layer, name in names.items()}


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, summed in float64 some rows at a time."""
    delta = total = 0.0
    for one, other in zip(found_in.parts(ours), found_in.parts(theirs), strict=True):
        wide = other.double()
        delta += float((one.double() - wide).square().sum())
        total += float(wide.square().sum())
    return sqrt(delta / total) if total else (float("inf") if delta else 0.0)
