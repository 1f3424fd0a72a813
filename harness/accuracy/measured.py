"""One accuracy suite as a stage: what fills it, and so all code that its numbers depend on."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from trinity.harness.accuracy.suite import MeasuredSuite, TextSuite
from trinity.harness.checkpoints.dequantized import Dequantized
from trinity.harness.engines.engine import Engine
from trinity.harness.records import measurement
from trinity.harness.records.facts import Data
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError


class Runs(Protocol):
    """What loads an engine, once."""

    def load(self) -> Engine:
        """What runs the model."""
        ...

    def load_for_text(self) -> Engine:
        """The same, for suites that may read the same windows of a text."""
        ...


def measure(
    folder: Path,
    *,
    suite: MeasuredSuite,
    read: dict[str, str],
    runs: Runs,
    model: Dequantized,
    dense: Dequantized | None,
    say: Callable[[], None],
) -> None:
    """Fill a stage with the measurements of one suite.

    read: the suite's data as they were when the stage was asked for, by name
    model: whose tokenizer is used   dense: the model before compression, where the suite compares
    """
    say()
    against = dense.load_for_text if dense else None
    engine = runs.load_for_text() if isinstance(suite, TextSuite) else runs.load()
    found = suite.measure(engine, model.tokenizer, against)
    check_read(suite.name, read, found)
    measurement.save(folder, found)


def check_read(name: str, kept_under: dict[str, str], found: list[Measurement]) -> None:
    """ConfigError if a suite's data changed between their fingerprint and their reading."""
    for m in found:
        data = Data.of(m)
        known = data.sha256 or data.commit
        if known and known not in kept_under.values():
            msg = (
                f"suite '{name}': {data.source} changed while it was measured. Run the "
                f"same command again."
            )
            raise ConfigError(msg)
