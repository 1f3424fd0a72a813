"""A shader with its specialization constants, in text for IREE."""

from dataclasses import dataclass

from trinity.lowering.kernels.vulkan.device import VULKAN_CODE

ENTRY = "main"  # glslc's name for every entry
VARIANT = "spirv"
NARROW = 8  # lanes of a subgroup; GPUs have more
BINDING = "#hal.pipeline.binding<storage_buffer"
QUERY = 'hal.device.query<%device : !hal.device> key("vulkan.device" :: '
IS_NARROW = (
    f'      %ok0, %subgroup = {QUERY}"subgroup_size") : i1, i32 = 32 : i32\n'
    f"      %widest = arith.constant {NARROW} : i32\n"
    f"      %narrow = arith.cmpi ule, %subgroup, %widest : i32\n"
)


@dataclass(frozen=True)
class Workgroup:
    """What a workgroup of a GPU takes.

    lanes: of a row   rows: as many as the device has room for, at most
    tokens, across: of the two axes that a dispatch counts
    """

    lanes: int
    rows: int = 1
    tokens: int = 1
    across: int = 1


@dataclass(frozen=True)
class Shader:
    """A file of SPIR-V and what a dispatch of it must know.

    few: tokens of a workgroup where subgroups are narrow   constants: behind those of the device
    numbers: push constants of 32 bits   reads, writes: tensors that it reads, and that it writes
    """

    file: str
    workgroup: Workgroup
    few: int
    constants: tuple[int, ...]
    numbers: int
    reads: int
    writes: int

    @property
    def name(self) -> str:
        """Of the executable; the same for the same code and constants."""
        size = self.workgroup
        sizes = (size.lanes, size.rows, size.tokens, self.few)
        return "_".join([self.file, *map(str, (*sizes, *self.constants))])

    @property
    def entry(self) -> str:
        """The symbol that is dispatched."""
        return f"@{self.name}::@{VARIANT}::@{ENTRY}"

    def text(self) -> str:
        """The executable; no other form of one keeps constants.

        The first four depend on the device: lanes, rows and tokens of a workgroup, and whether
        eight lanes are a subgroup.  A device whose subgroups are narrow is a processor: workgroups
        of one row there, and never more lanes than a vector has.  It emulates shared memory and
        what waits for it, so that many tokens are no tiles.
        """
        size = self.workgroup
        bindings = ", ".join([f"{BINDING}, ReadOnly>"] * self.reads + [f"{BINDING}>"] * self.writes)
        names = ["%lanes", "%rows", "%tokens", "%eight"]
        names += [f"%c{i}" for i in range(len(self.constants))]
        values = "".join(
            f"      %c{i} = arith.constant {of} : i32\n" for i, of in enumerate(self.constants)
        )
        types = ", ".join(["i32"] * len(names))
        keys = ", ".join(f'"{name.strip("%")}"' for name in names)
        return (
            f"hal.executable private @{self.name} {{\n"
            f"  hal.executable.variant public @{VARIANT} target({VULKAN_CODE}) "
            f'objects([#hal.executable.object<{{path = "{self.file}.spv"}}>]) {{\n'
            f"    hal.executable.constant.block(%device: !hal.device) -> ({types}) as ({keys}) {{\n"
            f"{IS_NARROW}"
            f'      %ok1, %threads = {QUERY}"max_compute_workgroup_invocations") '
            f": i1, i32 = 128 : i32\n"
            f"      %one = arith.constant 1 : i32\n"
            f"      %wide = arith.constant {size.lanes} : i32\n"
            f"      %most = arith.constant {size.rows} : i32\n"
            f"      %fit = arith.divui %threads, %wide : i32\n"
            f"      %room = arith.minui %fit, %most : i32\n"
            f"      %few = arith.constant {self.few} : i32\n"
            f"      %many = arith.constant {size.tokens} : i32\n"
            f"      %lanes = arith.select %narrow, %widest, %wide : i32\n"
            f"      %rows = arith.select %narrow, %one, %room : i32\n"
            f"      %tokens = arith.select %narrow, %few, %many : i32\n"
            f"      %whole = arith.cmpi eq, %subgroup, %widest : i32\n"
            f"      %both = arith.andi %narrow, %whole : i1\n"
            f"      %eight = arith.extui %both : i1 to i32\n"
            f"{values}      hal.return {', '.join(names)} : {types}\n    }}\n"
            f"    hal.executable.export public @{ENTRY} ordinal(0) layout(#hal.pipeline.layout<"
            f"constants = {self.numbers}, bindings = [{bindings}]>) "
            f"count(%device: !hal.device, %all: index, %rows: index) -> (index, index, index) {{\n"
            f"{IS_NARROW}"
            f"{_counted('x', 'all', 1, size.across)}"
            f"{_counted('y', 'rows', self.few, size.tokens)}"
            f"      %one = arith.constant 1 : index\n"
            f"      hal.return %x, %y, %one : index, index, index\n    }}\n  }}\n}}\n"
        )


def _counted(result: str, given: str, narrow: int, wide: int) -> str:
    """Workgroups along an axis, of which each takes so many on the two kinds of devices."""
    found = "".join(
        f"      %{result}_{kind} = affine.apply affine_map<()[s0] -> (s0 ceildiv {each})>()"
        f"[%{given}]\n"
        for kind, each in (("narrow", narrow), ("wide", wide))
    )
    chosen = f"%narrow, %{result}_narrow, %{result}_wide : index"
    return f"{found}      %{result} = arith.select {chosen}\n"
