"""What two records are compared on: accuracy, sizes and speed-ups, never an absolute time."""

from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report import verdicts
from trinity.harness.statistics import comparison

COMPARED: tuple[str, ...] = (*verdicts.ACCURACY, *comparison.SIZES, comparison.SPEEDUP)


def measurements_of(found: Record) -> list[Measurement]:
    """A record's measurements that can be compared, and the size of its checkpoint, which every
    record has: bits per weight, and the bytes of its files.
    """
    sizes = {
        "bits_per_weight": ("bits", found.checkpoint.bits_per_weight),
        "stored_bytes": ("bytes", float(sum(found.checkpoint.stored_bytes.values()))),
    }
    counted = [
        Measurement(
            name="checkpoint",
            metric=metric,
            value=value,
            unit=unit,
            higher_is_better=False,
            path="reference",
            engine="files",
        )
        for metric, (unit, value) in sizes.items()
    ]
    return [*(m for m in found.measurements if m.metric in COMPARED), *counted]
