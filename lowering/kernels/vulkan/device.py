"""The device that modules for Vulkan are compiled for, and where the code of our kernels is."""

from pathlib import Path

OBJECTS = Path(__file__).parent  # SPIR-V, by name
# A desktop Vulkan 1.3 device with 8-bit, 16-bit and 64-bit types and no subgroups, for the code
# that the compiler makes.  Its default is a phone without small types; it emulates them and gets
# float16 storage and index arithmetic wrong.
VULKAN_DEVICE = (
    '#hal.device.target<"vulkan", [#hal.executable.target<"vulkan-spirv", "vulkan-spirv-fb", '
    '{iree_codegen.target_info = #iree_gpu.target<arch = "vp_android_baseline_2022", '
    'features = "spirv:v1.3,cap:Shader", wgp = <compute = fp32|fp16|int64|int32|int16|int8, '
    "storage = b64|b32|b16|b8, subgroup = none, subgroup_size_choices = [64], "
    "max_workgroup_sizes = [128, 128, 64], max_thread_count_per_workgroup = 128, "
    "max_workgroup_memory_bytes = 16384, max_workgroup_counts = [65535, 65535, 65535]>>}>]> "
    ": !hal.device"
)
# Without a configuration a target matches every device of its kind: what our kernels are for.
VULKAN_CODE = '#hal.executable.target<"vulkan-spirv", "vulkan-spirv-fb">'
# Devices may ask for buffers that begin at multiples of this, and none for more.
OFFSETS = "--iree-stream-resource-min-offset-alignment=256"
