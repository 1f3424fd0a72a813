"""Clocks, power and temperature of NVIDIA GPUs meanwhile, as nvidia-smi samples them."""

import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from statistics import median
from typing import Any, Self

FIELDS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "celsius": "temperature.gpu",
    "busy_percent": "utilization.gpu",
}
EVERY_MS = 200


class Watch:
    """Samples of the first GPU while the block lasts; none where there is no nvidia-smi."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        """program: nvidia-smi"""
        self.path = shutil.which(program)
        self.missing = None if self.path else f"{program} is not there, so no clocks and no power"
        self.samples: list[tuple[float, dict[str, float]]] = []
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start."""
        if self.path:
            query = f"--query-gpu={','.join(FIELDS.values())}"
            how = ["--format=csv,noheader,nounits", "--id=0", f"--loop-ms={EVERY_MS}"]
            self.process = subprocess.Popen(
                [self.path, query, *how],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
            self.reader = threading.Thread(target=self._read, daemon=True)
            self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.reader.join()

    def _read(self) -> None:
        assert self.process
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.samples.append((time.monotonic(), numbers(line)))

    def between(self, start: float, end: float) -> dict[str, Any]:
        """Lowest, median and highest of each since a time of `time.monotonic`, or why there are
        none.
        """
        if self.missing:
            return {"gpu_sampled": self.missing}
        here = [found for at, found in self.samples if start <= at <= end]
        return {"gpu_samples": len(here)} | {
            name: [min(values), median(values), max(values)]
            for name in FIELDS
            if (values := [found[name] for found in here if name in found])
        }


def numbers(line: str) -> Mapping[str, float]:
    """A line of nvidia-smi's; what a GPU does not tell ('[N/A]') is left out."""
    found = {}
    for name, word in zip(FIELDS, line.split(","), strict=False):
        try:
            found[name] = float(word)
        except ValueError:
            continue
    return found
