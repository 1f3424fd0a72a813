"""Where modules run: one row a target, which brings all that is its own.

Importing this module loads no kernel and neither compiler nor runtime: a row names its kernels by a
function that imports them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from trinity.lowering.kernels.cpu import cpus
from trinity.lowering.kernels.cuda.device import CUDA_CODE
from trinity.lowering.kernels.rocm.device import ARCHITECTURES
from trinity.lowering.kernels.vulkan.device import OFFSETS, VULKAN_DEVICE
from trinity.methods.errors import ConfigError
from trinity.methods.plugins import OURS, Group, Owner

if TYPE_CHECKING:
    from trinity.lowering.kernels.target_kernels import TargetKernels

GROUP = "trinity.targets"
HOST_FLAG = "--iree-llvmcpu-target-cpu=host"
# Beside a target's own, of every module.
COMMON_FLAGS = (
    "--iree-input-type=torch",
    # Unpacking a weight depends on constants alone.  Hoisted, it would run once at load time and
    # leave the dense weight in memory, which is what packing is there to avoid.
    "--iree-opt-const-expr-hoisting=false",
    "--iree-opt-const-eval=false",
)


@dataclass(frozen=True)
class Target:
    """A compilation target.

    flags: of iree-compile, that choose the device
    driver: of the IREE runtime, None if modules only compile
    missing: what a machine without the device lacks
    device: an MLIR attribute that describes the device, where no flag can
    embeds: bytes that every module for it contains
    kernels: gives our kernels for it, which are used where they hold a format; None if it has none
    cpu: a kind of processor that is not this machine's
    architecture: of the GPU that modules are for, where code for one does not run on another
    like: the target whose kernels and formats are the same, for another GPU of its maker's
    """

    name: str
    flags: tuple[str, ...]
    driver: str | None
    missing: str
    device: str | None = None
    embeds: bytes | None = None
    kernels: "Callable[[], TargetKernels] | None" = None
    cpu: cpus.Cpu | None = None
    architecture: str | None = None
    like: str | None = None

    @property
    def for_host(self) -> bool:
        """Whether modules depend on the processor of the machine that compiles them."""
        return self.cpu is None and cpus.HOST in " ".join(self.flags)


def _cpu_kernels(cpu: cpus.Cpu | None = None) -> "TargetKernels":
    from trinity.lowering.kernels.cpu.kernels import CpuKernels

    return CpuKernels(cpu)


def _cuda_kernels() -> "TargetKernels":
    from trinity.lowering.kernels.cuda.kernels import KERNELS

    return KERNELS


def _vulkan_kernels() -> "TargetKernels":
    from trinity.lowering.kernels.vulkan.kernels import KERNELS

    return KERNELS


def _rocm_kernels(architecture: str) -> "TargetKernels":
    from trinity.lowering.kernels.rocm.kernels import RocmKernels

    return RocmKernels(architecture)


# The default way to distribute sums over lanes fails ("failed to distribute") on contractions
# of few rows that unpack 2:4 metadata.
NO_REDUCTION_DISTRIBUTION = "--iree-codegen-llvmgpu-use-reduction-vector-distribution=false"


def _rocm(architecture: str, name: str, like: str | None = None) -> Target:
    """The target of an AMD GPU."""
    return Target(
        name,
        (
            "--iree-hal-target-device=hip",
            f"--iree-rocm-target={architecture}",
            NO_REDUCTION_DISTRIBUTION,
        ),
        "hip",
        "no AMD GPU with a working driver (libamdhip64.so).",
        kernels=partial(_rocm_kernels, architecture),
        architecture=architecture,
        like=like,
    )


BUILT_IN = {
    target.name: target
    for target in (
        Target(
            "llvm-cpu",
            (
                "--iree-hal-target-device=local",
                "--iree-hal-local-target-device-backends=llvm-cpu",
                HOST_FLAG,
                # Our kernels keep sums and unpacked codes in scratch memory, on the stack of a
                # worker's thread, which has megabytes; the default is 32768.
                "--iree-llvmcpu-stack-allocation-limit=65536",
            ),
            "local-task",
            "the IREE runtime lists no local-task device; reinstall iree-base-runtime.",
            kernels=_cpu_kernels,
        ),
        Target(
            "vulkan",
            (OFFSETS,),
            "vulkan",
            "the Vulkan loader finds no device. Install a driver; Debian's mesa-vulkan-drivers "
            "has one that runs on the CPU.",
            device=VULKAN_DEVICE,
            kernels=_vulkan_kernels,
        ),
        Target(
            "cuda",
            (NO_REDUCTION_DISTRIBUTION,),
            "cuda",
            "no NVIDIA GPU with a working driver (libcuda.so.1).",
            device=f'#hal.device.target<"cuda", [{CUDA_CODE}]> : !hal.device',
            embeds=b"sm_80",
            kernels=_cuda_kernels,
        ),
        _rocm("gfx90a", "rocm"),
        *(_rocm(of, f"rocm-{of}", like="rocm") for of in ARCHITECTURES if of != "gfx90a"),
    )
}


_PLUGINS = Group(GROUP, "target", lambda: ((name, __name__) for name in BUILT_IN))


def names() -> list[str]:
    """Every target's name, built in or offered by a package."""
    return _PLUGINS.names()


def owner(name: str) -> Owner:
    """Who registers a target; ConfigError if nobody does, or several."""
    return _PLUGINS.owner(name)


def get(name: str, cpu: str = cpus.HOST) -> Target:
    """The target of that name, for a kind of processor; ConfigError if it is unknown or offered
    twice, or has no processor to choose.
    """
    if _PLUGINS.owner(name).distribution == OURS:
        target = BUILT_IN[name]
    else:
        target = _PLUGINS.load_as(name, Target, "a trinity.lowering.targets.targets.Target")
    kind = cpus.get(cpu)
    if kind is None:
        return target
    if target.kernels is not _cpu_kernels:
        msg = f"target {name}: it has no cpu to choose, and {cpu!r} was asked for. Leave it out."
        raise ConfigError(msg)
    flags = [flag for flag in target.flags if flag != HOST_FLAG]
    kernels = partial(_cpu_kernels, kind)
    return replace(target, flags=(*flags, *kind.flags), kernels=kernels, cpu=kind)
