"""Record files of older versions, brought to today's form when they are read.  The files stay.

To change the schema in a way that a default cannot express: raise `SCHEMA_VERSION`, add the step
from the version before to `STEPS`, publish the new JSON Schema beside the old ones, and leave all
that stands here as it is.  A step takes and gives plain data, and never looks at today's classes:
those go on changing, and what an old file means does not.
"""

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA_VERSION = 2  # of the files that are written

Data = dict[str, Any]

# Options that came while version 1 was written, with what was done before there was a choice.
_BEFORE_THE_OPTION: Mapping[str, Mapping[str, Any]] = {
    "model": {"dense": None, "training": None},
    "compress": {"order": "block", "inputs": None, "tune": None},
    "calibration": {"seeds": []},
    "lower": {"cpu": "host"},
    "bench": {"batch": [1], "rows": [1], "shapes": "model", "baseline": None},
}


def _whole(data: Data) -> Data:
    """1 to 2: a recipe names the options that came during version 1, and a speed-up the dense model
    that it is over.

    So two records differ where their runs did, and not where one was written before an option was;
    also when the default of that option is another one day.
    """
    recipe = dict(data["recipe"])
    for section, options in _BEFORE_THE_OPTION.items():
        if isinstance(recipe.get(section), dict):
            recipe[section] = {**options, **recipe[section]}
    dense = f"{data['model']['sha256'][:12]} in {recipe['model'].get('dtype')}"
    measurements = [
        {**m, "details": {"dense_model": dense, **m.get("details", {})}}
        if m.get("metric") == "speedup"
        else m
        for m in data["measurements"]
    ]
    return {**data, "recipe": recipe, "measurements": measurements}


STEPS: Mapping[int, Callable[[Data], Data]] = {1: _whole}
"""From each version to the next."""


def migrated(data: Data, version: int) -> Data:
    """A file's data in today's form.  version: of the file, from 1 to `SCHEMA_VERSION`"""
    for step in range(version, SCHEMA_VERSION):
        data = STEPS[step](data)
    return data
