"""The only import of the IREE compiler: storage IR to a module for one target."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from iree.compiler.tools.binaries import find_tool

from trinity.lowering.targets import Target
from trinity.methods.errors import LoweringError

SCOPE = "model"  # scope of every parameter
OBJECTS = Path(__file__).parent / "kernels" / "cuda"  # code that is made already, by name
COMMON_FLAGS = (
    "--iree-input-type=torch",
    # Unpacking a weight depends on constants alone.  Hoisted, it would run once at load time and
    # leave the dense weight in memory, which is what packing is there to avoid.
    "--iree-opt-const-expr-hoisting=false",
    "--iree-opt-const-eval=false",
)


def compile_text(text: str, target: Target, extra: Sequence[str] = ()) -> bytes:
    """The module of a target-stage text, as the bytes of a `.vmfb`."""
    with tempfile.TemporaryDirectory() as folder:
        source, module = Path(folder, "module.mlir"), Path(folder, "module.vmfb")
        source.write_text(text, encoding="utf-8")
        command = [compiler(), str(source), *COMMON_FLAGS, *target.flags, *extra, "-o", str(module)]
        # Where kernels in files are.  No flag of the target's: a cache key names no folder.
        command.append(f"--iree-hal-executable-object-search-path={OBJECTS}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"target {target.name}: iree-compile refused the module. {complaint(done.stderr)}"
            raise LoweringError(msg)
        compiled = module.read_bytes()
    if target.embeds is not None and target.embeds not in compiled:
        msg = f"target {target.name}: the module holds no code for {target.embeds.decode()}."
        raise LoweringError(msg)
    return compiled


def target_text(text: str, target: Target) -> str:
    """Stage target: storage text as IREE takes it.

    External globals become parameters, and the module says which device it is for.  That a result
    overwrites an argument is left out: the caches are written in place as it is, the only use of a
    cache being the write, and IREE would copy each of them once more to say so.
    """
    text = re.sub(r"^\s*torch\.overwrite\.tensor\.contents .*\n", "", text, flags=re.MULTILINE)
    if target.device is not None:
        attributes = f"module attributes {{hal.device.targets = [{target.device}]}} {{"
        text = re.sub(r"^module \{", lambda _: attributes, text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^#extern\d* = #ml_program\.extern\n", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"ml_program\.global private @(\"[^\"]+\"|[\w$.]+)\(#extern\d*\) : (.*)",
        lambda found: (
            f"util.global private @{found[1]} = "
            f'#flow.parameter.named<"{SCOPE}"::"{found[1].strip(chr(34))}"> : {found[2]}'
        ),
        text,
    )
    return text.replace("ml_program.global_load_const", "util.global.load immutable")


def compiler() -> str:
    """Path of the `iree-compile` that belongs to the installed package."""
    path: str = find_tool("iree-compile")
    return path


def compiler_versions() -> dict[str, str]:
    """Versions of all that turns a model into a module."""
    return {name: version(name) for name in ("torch", "torch-mlir", "iree-base-compiler")}


def complaint(stderr: str) -> str:
    """The first lines of a compiler's complaint that say something, cut to a readable length."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wanted = [line for line in lines if "error:" in line] or lines
    return " | ".join(re.sub(r"^\S*module\.mlir:", "line ", line)[:300] for line in wanted[:3])
