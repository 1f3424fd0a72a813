"""Where modules run: a name, the compiler's flags, and the runtime's driver."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from trinity.methods.errors import ConfigError, MachineError, nearest

GROUP = "trinity.targets"
Finder = Callable[[], tuple[EntryPoint, ...]]


@dataclass(frozen=True)
class Target:
    """A compilation target.

    flags: of iree-compile, that choose the device
    driver: of the IREE runtime, None if modules only compile
    missing: what a machine without the device lacks
    device: an MLIR attribute that describes the device, where no flag can
    embeds: bytes that every module for it contains
    kernels: which kernels of ours are used where they hold a format: those in the `vector` dialect,
    for CPUs, or those in CUDA
    """

    name: str
    flags: tuple[str, ...]
    driver: str | None
    missing: str
    device: str | None = None
    embeds: bytes | None = None
    kernels: Literal["vector", "cuda"] | None = None

    def available(self) -> bool:
        """Whether this machine has the device."""
        if self.driver is None:
            return False
        from trinity.lowering import invoke  # it imports this module

        return invoke.has_device(self.driver)

    def require(self) -> str:
        """The driver; MachineError if a module cannot run here."""
        if self.driver is None or not self.available():
            msg = f"target {self.name}: modules compile but cannot run here: {self.missing}"
            raise MachineError(msg)
        return self.driver


# A desktop Vulkan 1.3 device with 8-bit, 16-bit and 64-bit types and no subgroups.  The compiler's
# default is a phone without small types; it emulates them and gets float16 storage and index
# arithmetic wrong.
VULKAN_DEVICE = (
    '#hal.device.target<"vulkan", [#hal.executable.target<"vulkan-spirv", "vulkan-spirv-fb", '
    '{iree_codegen.target_info = #iree_gpu.target<arch = "vp_android_baseline_2022", '
    'features = "spirv:v1.3,cap:Shader", wgp = <compute = fp32|fp16|int64|int32|int16|int8, '
    "storage = b64|b32|b16|b8, subgroup = none, subgroup_size_choices = [64], "
    "max_workgroup_sizes = [128, 128, 64], max_thread_count_per_workgroup = 128, "
    "max_workgroup_memory_bytes = 16384, max_workgroup_counts = [65535, 65535, 65535]>>}>]> "
    ": !hal.device"
)
# sm_80, as this compiler describes it; the PTX of our kernels is attached to this very attribute.
# It knows no newer server GPU; the driver compiles the PTX inside for those.
CUDA_CODE = (
    '#hal.executable.target<"cuda", "cuda-nvptx-fb", {iree_codegen.target_info = '
    '#iree_gpu.target<arch = "sm_80", features = "+ptx76", '
    "wgp = <compute = fp64|fp32|fp16|int64|int32|int16|int8, storage = b64|b32|b16|b8, "
    "subgroup = shuffle|arithmetic, dot = dp4xi8toi32, mma = [<NV_MMA_SYNC_F32_16x8x16_F16>, "
    "<NV_MMA_SYNC_F16_16x8x16_F16>, <NV_MMA_SYNC_F32_16x8x16_BF16>, "
    "<NV_WMMA_F32_16x16x16_F16>, <NV_WMMA_F16_16x16x16_F16>], subgroup_size_choices = [32], "
    "max_workgroup_sizes = [1024, 1024, 1024], max_thread_count_per_workgroup = 1024, "
    "max_workgroup_memory_bytes = 166912, max_workgroup_counts = [2147483647, 65535, 65535]>>}>"
)
# The default way to distribute sums over lanes fails ("failed to distribute") on contractions
# of few rows that unpack 2:4 metadata.
NO_REDUCTION_DISTRIBUTION = "--iree-codegen-llvmgpu-use-reduction-vector-distribution=false"

BUILT_IN = {
    target.name: target
    for target in (
        Target(
            "llvm-cpu",
            (
                "--iree-hal-target-device=local",
                "--iree-hal-local-target-device-backends=llvm-cpu",
                "--iree-llvmcpu-target-cpu=host",
                # Our kernels keep sums and unpacked codes in scratch memory, on the stack of a
                # worker's thread, which has megabytes; the default is 32768.
                "--iree-llvmcpu-stack-allocation-limit=65536",
            ),
            "local-task",
            "the IREE runtime lists no local-task device; reinstall iree-base-runtime.",
            kernels="vector",
        ),
        Target(
            "vulkan",
            (),
            "vulkan",
            "the Vulkan loader finds no device. Install a driver; Debian's mesa-vulkan-drivers "
            "has one that runs on the CPU.",
            device=VULKAN_DEVICE,
        ),
        Target(
            "cuda",
            (NO_REDUCTION_DISTRIBUTION,),
            "cuda",
            "no NVIDIA GPU with a working driver (libcuda.so.1).",
            device=f'#hal.device.target<"cuda", [{CUDA_CODE}]> : !hal.device',
            embeds=b"sm_80",
            kernels="cuda",
        ),
        Target(
            "rocm",
            (
                "--iree-hal-target-device=hip",
                "--iree-rocm-target=gfx90a",
                NO_REDUCTION_DISTRIBUTION,
            ),
            "hip",
            "no AMD GPU with a working driver (libamdhip64.so).",
        ),
    )
}


def names(found: Finder | None = None) -> list[str]:
    """Every target's name, built in or offered by a package."""
    return sorted({*BUILT_IN, *(point.name for point in (found or _offered)())})


def get(name: str, found: Finder | None = None) -> Target:
    """The target of that name; ConfigError if it is unknown or offered twice."""
    offers = [point for point in (found or _offered)() if point.name == name]
    owners = (["trinity"] if name in BUILT_IN else []) + [point.value for point in offers]
    if len(owners) > 1:
        msg = f"target '{name}': offered by both {' and '.join(owners)}. Uninstall all but one."
        raise ConfigError(msg)
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not offers:
        known = names(found)
        msg = f"target '{name}' is unknown; there is {', '.join(known)}.{nearest(name, known)}"
        raise ConfigError(msg)
    target = offers[0].load()
    if not isinstance(target, Target):
        msg = (
            f"target '{name}': {offers[0].value} is {type(target).__name__}, not a lowering Target."
        )
        raise ConfigError(msg)
    return target


def _offered() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
