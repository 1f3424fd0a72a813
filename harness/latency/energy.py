"""Energy of a decoded token, where the machine counts it; else no number, and why.

Counters: RAPL of the processor's packages (Linux's powercap), and NVML of an NVIDIA GPU. Both count
all that the device does meanwhile, so other work on the machine is in the number.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from trinity.harness.engines.engine import Engine
from trinity.harness.records.measurement import Measurement

RAPL = Path("/sys/class/powercap")
LEAST_S = 1.0  # of decoding between two readings: RAPL is renewed every millisecond
REPEATS = 3
_MICRO, _MILLI = 1e-6, 1e-3


@dataclass(frozen=True)
class Counter:
    """joules: counted so far   what: in a reader's words   wraps_at_j: where it starts again"""

    joules: Callable[[], float]
    what: str
    wraps_at_j: float = float("inf")

    def between(self, before: float, after: float) -> float:
        """Joules from one reading to a later one, less than a whole round of the counter."""
        return after - before if after >= before else after - before + self.wraps_at_j


def counter(rapl: Path = RAPL) -> Counter | str:
    """What counts energy here; else why nothing does."""
    if torch.cuda.is_available():
        return _nvml()
    return _rapl(rapl)


def per_token(
    engine: Engine, name: str, decode: Callable[[], int], source: Counter | str
) -> Measurement:
    """Joules a token of an engine, the median of a few stretches of decoding.

    decode: decodes some tokens and says how many
    """
    samples = [] if isinstance(source, str) else [_stretch(decode, source) for _ in range(REPEATS)]
    return Measurement(
        name=name,
        metric="joules_per_token",
        value=median(samples) if samples else None,
        unit="J/token",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
        samples=samples,
        details={} if isinstance(source, str) else {"counter": source.what, "least_s": LEAST_S},
        reason=source if isinstance(source, str) else None,
    )


def _stretch(decode: Callable[[], int], source: Counter) -> float:
    start, before, tokens = time.perf_counter(), source.joules(), 0
    while time.perf_counter() - start < LEAST_S:
        tokens += decode()
    return source.between(before, source.joules()) / tokens


def _rapl(folder: Path) -> Counter | str:
    """The packages' counters alone: cores and memory controllers are parts of them."""
    packages = [
        zone
        for zone in sorted(folder.glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and _says(zone / "name").startswith("package")
    ]
    if not packages:
        return f"no energy counter: {folder} has no package of RAPL, and there is no NVIDIA GPU"
    if not all(_says(zone / "energy_uj").isdigit() for zone in packages):
        return f"no energy counter: {packages[0] / 'energy_uj'} may be read by root alone"

    def joules() -> float:
        return _MICRO * sum(float(_says(zone / "energy_uj")) for zone in packages)

    rounds = [float(_says(zone / "max_energy_range_uj") or "inf") for zone in packages]
    return Counter(joules, f"RAPL, {len(packages)} packages", _MICRO * min(rounds))


def _nvml() -> Counter | str:
    try:
        import pynvml  # of the driver's package, which may be missing
    except ImportError:
        return "no energy counter: the package nvidia-ml-py is missing"
    try:
        pynvml.nvmlInit()
        # By its own name: torch counts the devices that CUDA_VISIBLE_DEVICES leaves, NVML all.
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError as error:
        return f"no energy counter: NVML says {error}"

    def joules() -> float:
        return _MILLI * float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))

    return Counter(joules, f"NVML, {torch.cuda.get_device_name()}")


def _says(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
