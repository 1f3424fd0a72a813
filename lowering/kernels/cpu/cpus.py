"""Kinds of processors that modules for `llvm-cpu` can be compiled for, this machine's among them.

    lower: {target: llvm-cpu, cpu: x86-64-v3}

Names are the compiler's.
"""

import platform
from dataclasses import dataclass

from trinity.lowering.kernels.cpu import processor
from trinity.methods.errors import ConfigError, MachineError

HOST = "host"
X86, ARM = "x86_64", "aarch64"
V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ICE_LAKE = V4 | {
    *("avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq"),
    *("avx512ifma", "gfni", "vaes", "vpclmulqdq", "sha_ni"),
}
SAPPHIRE_RAPIDS = ICE_LAKE | {
    *("amx_tile", "amx_int8", "amx_bf16", "avx_vnni", "avx512_bf16", "avx512_fp16"),
}
ARM_V8_2 = frozenset({"asimd", "asimddp", "atomics", "asimdrdm", "asimdhp", "fphp"})


@dataclass(frozen=True)
class Cpu:
    """A kind of processor.

    machine: as `platform.machine()` says it   features: in Linux's words, what code may use
    flags: of the compiler
    """

    name: str
    machine: str
    features: frozenset[str]
    flags: tuple[str, ...]

    @property
    def missing(self) -> str | None:
        """What this machine lacks to run its code, or None."""
        if platform.machine() != self.machine:
            return f"this machine is {platform.machine()} and not {self.machine}"
        lacking = sorted(self.features - processor.features())
        if lacking:
            return f"this processor lacks {', '.join(lacking)}"
        if self.features >= processor.TILE_FEATURES and not processor.may_use_tiles():
            return "Linux does not grant AMX's registers to this process"
        return None

    def require(self) -> None:
        """MachineError, in words, where its code cannot run."""
        if missing := self.missing:
            msg = (
                f"cpu {self.name}: modules compile but cannot run here: {missing}. Copy the module "
                f"to a machine that has it, or compile with `cpu: host`."
            )
            raise MachineError(msg)


def _x86(name: str, features: frozenset[str]) -> Cpu:
    flags = (
        "--iree-llvmcpu-target-triple=x86_64-unknown-linux-gnu",
        f"--iree-llvmcpu-target-cpu={name}",
    )
    return Cpu(name, X86, features, flags)


def _arm(name: str, features: frozenset[str]) -> Cpu:
    flags = (
        "--iree-llvmcpu-target-triple=aarch64-unknown-linux-gnu",
        f"--iree-llvmcpu-target-cpu={name}",
    )
    return Cpu(name, ARM, features, flags)


CPUS = {
    cpu.name: cpu
    for cpu in (
        _x86("x86-64", frozenset()),
        _x86("x86-64-v3", V3),
        _x86("alderlake", V3 | {"avx_vnni", "gfni", "vaes", "vpclmulqdq", "sha_ni"}),
        _x86("x86-64-v4", V4),
        _x86("icelake-server", ICE_LAKE),
        _x86("sapphirerapids", SAPPHIRE_RAPIDS),
        _arm("neoverse-n1", ARM_V8_2),
        _arm("neoverse-v1", ARM_V8_2 | {"i8mm", "bf16", "sve"}),
    )
}


def get(name: str) -> Cpu | None:
    """The kind of that name, None for this machine's own; ConfigError if nobody knows it."""
    if name == HOST:
        return None
    if name not in CPUS:
        msg = f"cpu {name!r} is not known; expected one of {', '.join([HOST, *CPUS])}."
        raise ConfigError(msg)
    return CPUS[name]
