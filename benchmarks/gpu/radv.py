"""What Mesa's driver for AMD GPUs makes of a compute shader, for a GPU that is not there.

`RADV_FORCE_FAMILY` gives RADV a device without hardware; it compiles pipelines and runs nothing.
Called as a program, because the driver reads its settings when it starts and prints what it makes:

    RADV_FORCE_FAMILY=navi21 RADV_DEBUG=shaders python -m benchmarks.gpu.radv FILE.spv --push 72 ...
"""

import argparse
import ctypes
import os
import sys
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

BINDINGS = 6
STORAGE_BUFFER, COMPUTE = 7, 32  # VkDescriptorType, VkShaderStageFlagBits
VULKAN_1_3 = 1 << 22 | 3 << 12


def structure(name: str, fields: str) -> Any:  # ctypes builds the class
    """A struct of Vulkan's.

    fields: one letter each: u and i for 32 bits, z for a size, h for a handle, p for a pointer,
    s for a text
    """
    types = {"u": c_uint32, "i": c_int32, "z": c_size_t, "h": c_uint64, "p": c_void_p}
    types["s"] = c_char_p
    return type(
        name,
        (ctypes.Structure,),
        {"_fields_": [(f"field{i}", types[letter]) for i, letter in enumerate(fields)]},
    )


# In the order of vulkan_core.h; those with a type begin with it and a pointer to more.
Application = structure("VkApplicationInfo", "upsusuu")
Instance = structure("VkInstanceCreateInfo", "upupupup")
Queue = structure("VkDeviceQueueCreateInfo", "upuuup")
Device = structure("VkDeviceCreateInfo", "upuupupupp")
Module = structure("VkShaderModuleCreateInfo", "upuzp")
Binding = structure("VkDescriptorSetLayoutBinding", "uuuup")
SetLayout = structure("VkDescriptorSetLayoutCreateInfo", "upuup")
PushConstants = structure("VkPushConstantRange", "uuu")
Layout = structure("VkPipelineLayoutCreateInfo", "upuupup")
Entry = structure("VkSpecializationMapEntry", "uuz")
Specialization = structure("VkSpecializationInfo", "upzp")
Stage = structure("VkPipelineShaderStageCreateInfo", "upuuhsp")


class Pipeline(ctypes.Structure):
    """VkComputePipelineCreateInfo."""

    _fields_ = [  # ctypes reads a list
        ("type", c_uint32),
        ("next", c_void_p),
        ("flags", c_uint32),
        ("stage", Stage),
        ("layout", c_uint64),
        ("base", c_uint64),
        ("base_index", c_int32),
    ]


def pointer(of: Any) -> c_void_p:
    """To a struct or an array, which must live as long."""
    return ctypes.cast(ctypes.pointer(of), c_void_p)


class Vulkan:
    """The first device of the loader's, and what a pipeline takes."""

    def __init__(self) -> None:
        """SystemExit without a loader or a device."""
        self.calls = ctypes.CDLL("libvulkan.so.1")
        application = Application(0, None, b"", 0, b"", 0, VULKAN_1_3)
        instance, found, count = c_void_p(), c_void_p(), c_uint32(1)
        made = Instance(1, None, 0, pointer(application), 0, None, 0, None)
        self.ask("vkCreateInstance", ctypes.byref(made), None, ctypes.byref(instance))
        self.calls.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), ctypes.byref(found))
        priority = c_float(1)
        queue = Queue(2, None, 0, 0, 1, pointer(priority))
        device, self.device = (
            Device(3, None, 0, 1, pointer(queue), 0, None, 0, None, None),
            c_void_p(),
        )
        self.ask("vkCreateDevice", found, ctypes.byref(device), None, ctypes.byref(self.device))

    def ask(self, name: str, *arguments: Any) -> None:
        """Call, and SystemExit with the status unless it succeeds."""
        if status := getattr(self.calls, name)(*arguments):
            raise SystemExit(f"{name}: {status}")

    def make(self, name: str, about: Any) -> c_uint64:
        """An object that a struct describes."""
        made = c_uint64()
        self.ask(name, self.device, ctypes.byref(about), None, ctypes.byref(made))
        return made

    def compile(self, code: bytes, constants: list[int], push_bytes: int) -> None:
        """A pipeline of a shader with its specialization constants, by number."""
        text = ctypes.create_string_buffer(code, len(code))
        module = self.make("vkCreateShaderModule", Module(16, None, 0, len(code), pointer(text)))
        bindings = (Binding * BINDINGS)(
            *(Binding(i, STORAGE_BUFFER, 1, COMPUTE, None) for i in range(BINDINGS))
        )
        about = SetLayout(32, None, 0, BINDINGS, pointer(bindings))
        buffers = self.make("vkCreateDescriptorSetLayout", about)
        push = PushConstants(COMPUTE, 0, push_bytes)
        about = Layout(30, None, 0, 1, pointer(buffers), 1, pointer(push))
        layout = self.make("vkCreatePipelineLayout", about)
        count = len(constants)
        values = (c_uint32 * count)(*constants)
        entries = (Entry * count)(*(Entry(i, 4 * i, 4) for i in range(count)))
        chosen = Specialization(count, pointer(entries), 4 * count, pointer(values))
        stage = Stage(18, None, 0, COMPUTE, module, b"main", pointer(chosen))
        about, made = Pipeline(29, None, 0, stage, layout, 0, -1), c_uint64()
        self.calls.vkCreateComputePipelines.argtypes = [
            *(c_void_p, c_uint64, c_uint32, POINTER(Pipeline), c_void_p, POINTER(c_uint64))
        ]
        self.ask(
            "vkCreateComputePipelines",
            *(self.device, 0, 1, ctypes.byref(about), None, ctypes.byref(made)),
        )


MARK = "=== the shader\n"  # what the driver prints before it is its own shaders'


def main() -> None:
    """Compile one shader."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("spirv", type=Path)
    parser.add_argument("--constants", required=True, help="numbers, a comma between two")
    parser.add_argument("--push", type=int, required=True, help="bytes of push constants")
    options = parser.parse_args()
    vulkan = Vulkan()
    sys.stderr.write(MARK)
    sys.stderr.flush()
    constants = [int(word) for word in options.constants.split(",")]
    vulkan.compile(options.spirv.read_bytes(), constants, options.push)
    sys.stdout.flush()
    os._exit(0)  # a device without hardware cannot be taken down


if __name__ == "__main__":
    main()
