"""What was done to every linear: error, sparsity and bits by block, of one run or of two."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trinity.harness.figures.figure import Row, significant
from trinity.harness.figures.shown import Shown

METRICS = {
    "relative_error": "Relative error of the output",
    "sparsity": "Share of zeros",
    "bits_per_weight": "Bits per weight",
}
SAYS = (
    "Rows are the linears of a block, columns the blocks. The error is that of the layer's outputs "
    "on the calibration text (in the Hessian norm), or of its weights where there was none. Choose "
    "two runs to see them side by side, and their difference: orange where the second has more."
)
LACKING = "No record holds results of single layers: nothing was compressed here."
PLACE = re.compile(r"^(?:.*?\.)?(\d+)\.(.+)$")  # 'model.layers.3.mlp.down_proj'


@dataclass(frozen=True)
class LayerGrid:
    """Values of one run by metric, [linear][block]; None where there is none."""

    run: str
    model: str
    linears: tuple[str, ...]
    values: dict[str, list[list[float | None]]]

    @property
    def shape(self) -> tuple[str, tuple[str, ...], int]:
        """What two runs must share to be compared."""
        return self.model, self.linears, len(next(iter(self.values.values()))[0])


def layer_grids(runs: Sequence[Shown]) -> list[LayerGrid]:
    """Of every run that changed a layer, by model and name."""
    found = [grid for run in runs if not run.is_dense and (grid := layer_grid(run))]
    return sorted(found, key=lambda grid: (grid.model, grid.run))


def layer_grid(run: Shown) -> LayerGrid | None:
    """The values of a run; None if its layers' names say no block."""
    places: dict[tuple[str, int], dict[str, Any]] = {}
    for name, layer in run.record.checkpoint.layers.items():
        if place := PLACE.match(name):
            places[place[2], int(place[1])] = layer
    if not places:
        return None
    linears = tuple(dict.fromkeys(linear for linear, _ in places))
    blocks = range(max(block for _, block in places) + 1)
    values = {
        metric: [
            [_value(places.get((linear, block)), metric) for block in blocks] for linear in linears
        ]
        for metric in METRICS
    }
    return LayerGrid(run.name, run.model, linears, values)


def rows_of(grid: LayerGrid, metric: str) -> list[Row]:
    """One row a linear and block."""
    return [
        {"linear": linear, "block": float(block), "value": value}
        for linear, values in zip(grid.linears, grid.values[metric], strict=True)
        for block, value in enumerate(values)
    ]


def _value(layer: dict[str, Any] | None, metric: str) -> float | None:
    value = None if layer is None else layer.get(metric)
    return None if value is None else significant(float(value), 3)
