"""Fingerprints of our own code: a stage made by other code is not reused."""

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path

from trinity.methods import registry
from trinity.methods.contract import Registered

HARNESS = Path(__file__).parent


def code_sha256(*names: str) -> str:
    """Hash of files and folders of the harness: a stage made by other code is not reused."""
    digest = hashlib.sha256()
    for name in names:
        path = HARNESS / name
        for source in sorted(path.rglob("*.*")) if path.is_dir() else [path]:
            if source.suffix in (".py", ".yaml"):
                digest.update(source.read_bytes())
    return digest.hexdigest()


def methods_sha256(methods: Iterable[Registered]) -> str:
    """Hash of all built-in method code, and of the files that define these methods."""
    paths = set(Path(registry.__file__).parent.rglob("*.py"))
    paths |= {Path(inspect.getfile(type(method))) for method in methods}
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()
