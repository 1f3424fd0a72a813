"""Which instructions kernels use on a processor."""

import platform
from functools import cache

from trinity.lowering.kernels.cpu import processor
from trinity.lowering.kernels.cpu.cpus import Cpu
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour, Instructions, best


def instructions_of(cpu: Cpu | None) -> Instructions:
    """What kernels may use on a kind of processor, or on this machine's own."""
    return best(cpu.features, cpu.machine) if cpu else host_instructions()


@cache
def host_instructions() -> Instructions:
    """What this machine's processor runs best, of what the system lets it use."""
    features = processor.features()
    if not processor.may_use_tiles():
        features -= processor.TILE_FEATURES
    return best(features, platform.machine())


def missing_here(flavour: Flavour) -> str | None:
    """What this machine lacks to run kernels of a flavour, or None."""
    lacking = sorted(INSTRUCTIONS[flavour].features - processor.features())
    if lacking:
        return f"this processor lacks {', '.join(lacking)}"
    if INSTRUCTIONS[flavour].matrix and not processor.may_use_tiles():
        return "Linux does not grant AMX's registers to this process"
    return None
