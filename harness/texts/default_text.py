"""What a calibration text is where a recipe or command leaves it open: a text that this machine can
have, in windows that the model can read.
"""

from typing import Any

from trinity.harness.recipes.recipe import CalibrationSpec
from trinity.harness.texts import corpora
from trinity.methods.errors import ConfigError

# In place of C4's shard: its sample, then the text of every Python; with as many and as long
# windows as both hold.
FALLBACKS: tuple[dict[str, Any], ...] = (
    {"dataset": "c4-sample", "samples": 32, "seqlen": 256},
    {"dataset": "pydoc", "rule": "concatenated", "samples": 32, "seqlen": 256},
)


def first_at_hand(asked: CalibrationSpec) -> CalibrationSpec:
    """The text that is asked for, or the first of the defaults that can be had if none is.

    What was asked for stays; of the rest, sizes and rule are those of the text.
    """
    given = {key: getattr(asked, key) for key in asked.model_fields_set}
    if {"dataset", "split"} & given.keys() or corpora.obtainable(asked.dataset, asked.split):
        return asked
    options = [CalibrationSpec().model_dump() | fallback | given for fallback in FALLBACKS]
    found = next(x for x in options if corpora.obtainable(x["dataset"], x["split"]))
    return CalibrationSpec.model_construct(_fields_set=set(given), **found)


def bounded(asked: CalibrationSpec, context: int, where: str) -> CalibrationSpec:
    """Windows no longer than the model's context; ConfigError if longer ones were asked for.

    where: the key of the recipe
    """
    if asked.seqlen <= context:
        return asked
    if "seqlen" in asked.model_fields_set:
        msg = (
            f"{where}.seqlen {asked.seqlen} is longer than the {context} positions of the model. "
            f"Choose a shorter one, or leave it out."
        )
        raise ConfigError(msg)
    return asked.model_copy(update={"seqlen": context})
