"""The only import of the IREE compiler: storage IR to a module for one target."""

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trinity.lowering.module.transposes import kept_apart
from trinity.lowering.names import SCOPE
from trinity.lowering.targets.targets import COMMON_FLAGS, Target
from trinity.methods.errors import LoweringError, MachineError

SOURCE = "module.mlir"
# The compiler checks its own work after every pass, which is half of its time and changes no byte
# of a module.  What it reads is checked all the same.
UNCHECKED = "--verify=false"


def compile_text(text: str, target: Target, extra: Sequence[str] = ()) -> bytes:
    """The module of a target-stage text, as the bytes of a `.vmfb`."""
    with _folder_of(text) as folder:
        module = folder / "module.vmfb"
        command = [
            tool("iree-compile"),
            SOURCE,
            *COMMON_FLAGS,
            *target.flags,
            *extra,
            "-o",
            module.name,
        ]
        # Folders are no flags of the target's: a cache key names none.
        if target.kernels and (objects := target.kernels().objects):
            command.append(f"--iree-hal-executable-object-search-path={objects}")
        # The compiler names its linker and temporary files in a shell's command, unquoted: a space
        # in either path would end it.
        command.append(f"--iree-llvmcpu-embedded-linker-path={shlex.quote(tool('iree-lld'))}")
        done = _run([*command, UNCHECKED], folder)
        if done.returncode:
            done = _run(command, folder)  # now it says which pass went wrong, and does not crash
        if done.returncode:
            msg = f"target {target.name}: iree-compile refused the module. {complaint(done.stderr)}"
            raise LoweringError(msg)
        compiled = module.read_bytes()
    if target.embeds is not None and target.embeds not in compiled:
        msg = f"target {target.name}: the module holds no code for {target.embeds.decode()}."
        raise LoweringError(msg)
    if target.kernels and (fault := target.kernels().fault(compiled)):
        raise LoweringError(f"target {target.name}: the module is wrong: {fault}.")
    return compiled


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            cwd=folder,
            env={**os.environ, "TMPDIR": "."},
        )
    except OSError as error:
        msg = (
            f"the compiler {command[0]} cannot be started ({error}). Install iree-base-compiler "
            f"again."
        )
        raise MachineError(msg) from error


@contextlib.contextmanager
def _folder_of(text: str) -> Iterator[Path]:
    """A temporary folder with a text for the compiler in it."""
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (folder / SOURCE).write_text(text, encoding="utf-8")
        except OSError as error:
            msg = (
                f"temporary files of the compiler cannot be written ({error}). Set TMPDIR to a "
                f"folder with room."
            )
            raise MachineError(msg) from error
        yield folder


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
    text = text.replace("ml_program.global_load_const", "util.global.load immutable")
    return kept_apart(text) if target.driver == "vulkan" else text


def tool(name: str) -> str:
    """Path of a program, `iree-compile` or `iree-lld`, that belongs to the installed package."""
    # Imported here: a module that is compiled already needs no compiler.
    from iree.compiler.tools.binaries import find_tool

    path: str = find_tool(name)
    return path


def complaint(stderr: str) -> str:
    """The first lines of a compiler's complaint that say something, cut to a readable length."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wanted = [line for line in lines if "error:" in line] or lines
    return " | ".join(re.sub(r"^\S*module\.mlir:", "line ", line)[:300] for line in wanted[:3])
