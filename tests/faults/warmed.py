"""Imported by the process that the others are forked from: what a run loads, loaded once.

A run of its own, in a folder that is gone at once, leaves torch, transformers and the hashes of the
code in memory.  It trains nothing: torch's engine of gradients starts threads, which no fork has.
"""

import tempfile
from pathlib import Path

from trinity.harness.terminal.hush import hush_libraries

hush_libraries()

from tests.faults import jobs  # noqa: E402  the libraries read what is hushed when imported
from trinity.harness.modules import module_stages  # noqa: E402  as above
from trinity.harness.store import own_code  # noqa: E402  as above
from trinity.harness.training import pretrain  # noqa: E402  as above

with tempfile.TemporaryDirectory(prefix="trinity-warm-") as _folder:
    jobs.make_data(Path(_folder, "data"))
    jobs.smoke(Path(_folder), jobs.SMALL)
    own_code.sha256(pretrain)
    own_code.sha256(module_stages)
