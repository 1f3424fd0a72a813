"""What this machine's processor can do, and what the system lets this process use of it."""

import ctypes
from functools import cache
from pathlib import Path

# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) of x86-64 Linux
ARCH_PRCTL, REQUEST_STATE, TILE_DATA = 158, 0x1023, 18
TILE_FEATURES = frozenset({"amx_tile", "amx_int8", "amx_bf16"})


@cache
def features() -> frozenset[str]:
    """What Linux says of an x86-64 or Arm processor; nothing of any other."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    lines = info.read_text("utf-8").splitlines()
    return next(
        (frozenset(line.split()) for line in lines if line.startswith(("flags", "Features"))),
        frozenset(),
    )


@cache
def may_use_tiles() -> bool:
    """Whether this process may use AMX's tile registers; it asks for them.

    Linux gives their 8 KiB of state to processes that ask, once and for all threads; to all others
    the instructions are illegal.
    """
    if not features() >= TILE_FEATURES:
        return False
    refused: int = ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_STATE, TILE_DATA)
    return refused == 0
