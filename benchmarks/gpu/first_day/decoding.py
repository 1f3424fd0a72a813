"""A small model on the device: token by token against torch's logits, and how fast."""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.first_day.rows import Row, failed, row
from trinity.lowering.module.check import MODEL_TOLERANCE, model_error
from trinity.lowering.module.invoke import CompiledModel
from trinity.lowering.targets import targets


def decode(bundle: Path, case: Mapping[str, Any], options: Any) -> list[Row]:
    """Errors of the logits of a prompt and of every decoded token, and tokens a second."""
    folder = bundle / case["folder"]
    model = CompiledModel(folder, folder / "parameters.safetensors", targets.get(case["target"]))
    ids = torch.from_numpy(np.load(bundle / case["ids"]))
    expected = torch.from_numpy(np.load(bundle / case["logits"]))
    half = ids.shape[1] // 2
    found, _ = _decoded(model, ids, half)
    errors = {
        "prefill": model_error(model.logits(ids), expected),
        "decode": model_error(found, expected[:, half - 1 :]),
    }
    allowed = MODEL_TOLERANCE[getattr(torch, case["dtype"])]
    about = {"dtype": case["dtype"], "format": case["label"], "allowed": allowed, "errors": errors}
    rows = []
    for name, error in errors.items():
        if error <= allowed:
            made = row(f"{case['name']} {name}", "logit_error", error, "1")
        else:
            far = f"{error:.1e} of the logits' norm from torch"
            why = f"wrong: {far}, where {allowed:.0e} is allowed."
            made = failed(f"{case['name']} {name}", "logit_error", why)
        rows.append(made | {"path": model.path, "details": about})
    if any(made["reason"] for made in rows):
        why = "the logits are wrong; nothing was timed."
        return [*rows, failed(case["name"], "tokens_per_s", why, path=model.path)]
    samples = []
    for _ in range(max(2, options.repeats // 4)):
        _, taken = _decoded(model, ids, half)
        samples.append(len(taken) / sum(taken))
    about = about | {"prompt_tokens": half, "new_tokens": ids.shape[1] - half, "batch": 1}
    speed = {"higher_is_better": True, "samples": samples, "path": model.path, "details": about}
    return [*rows, row(case["name"], "tokens_per_s", median(samples), "tokens/s", **speed)]


def _decoded(model: CompiledModel, ids: Tensor, half: int) -> tuple[Tensor, list[float]]:
    """Logits after the prompt and after each further token, and the seconds of each of those."""
    session = model.session()
    logits, taken = [session.prefill(ids[:, :half])], []
    for tokens in ids[:, half:].unbind(1):
        start = time.perf_counter()
        logits.append(session.step(tokens))
        taken.append(time.perf_counter() - start)
    return torch.stack(logits, dim=1), taken
