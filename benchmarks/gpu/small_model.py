"""A small random Llama: compressed, compiled, stored, and the logits that torch gives for it."""

import hashlib
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from trinity.lowering.lower import lower
from trinity.lowering.module.check import MODEL_TOLERANCE, torch_logits
from trinity.lowering.parameters import write_parameters
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.formats import Adapted, CompressedWeight, Dense, Quantized, Sparse, format_of

LABEL = "gpu-first-day"  # of the records' models
VOCABULARY = 1024
GROUP, RANK = 128, 32
STEPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "int4": [("rtn", {"bits": 4, "group_size": GROUP})],
    "2:4 int4 + adapter": [
        ("rtn", {"bits": 4, "group_size": GROUP}),
        ("magnitude", {"pattern": "2:4"}),
    ],
}


@dataclass(frozen=True)
class Size:
    """Of a model: width of its hidden states, blocks, longest text, and tokens that it takes at
    once.
    """

    width: int
    blocks: int
    tokens: int
    chunk: int


@dataclass(frozen=True)
class Built:
    """case: where the program finds what it runs   facts: of the weights, for the record"""

    case: dict[str, Any]
    facts: dict[str, Any]

    def record(self, name: str, target: str) -> dict[str, Any]:
        """What is known already of the record of its decoding."""
        facts = self.facts
        return {
            "recipe": {
                "name": name,
                "model": {"id": "random:llama"},
                "compress": {"steps": facts["steps"]},
                "lower": {"target": target},
            },
            "model": {
                "id": "random:llama",
                "label": LABEL,
                "revision": None,
                "sha256": facts["sha256"],
                "note": "a random Llama: its text means nothing",
            },
            "checkpoint": {
                "fingerprint": facts["sha256"],
                "bits_per_weight": facts["bits_per_weight"],
                "stored_bytes": {"parameters": facts["bytes"]},
                "layers": facts["layers"],
            },
            "lowering": facts["lowering"],
        }


def built(out: Path, kind: str, dtype: str, target: str, size: Size) -> Built:
    """Write module, parameters, token ids and logits of a kind of model into a bundle."""
    model, weights = compressed(kind, dtype, size)
    formats = {name: format_of(weight) for name, weight in weights.items()}
    lengths = tuple(sorted({1, size.chunk}))
    plan = Lowering(model.config, formats, targets.get(target), lengths, size.tokens, dtype)
    start = time.perf_counter()
    lowered = lower(model, plan)
    compile_s = time.perf_counter() - start
    folder = out / "models" / target / f"{slug(kind)}-{dtype}"
    lowered.save(folder)
    path = folder / "parameters.safetensors"
    write_parameters(path, model, weights, lowered.parameters, plan)
    ids = torch.randint(VOCABULARY, (1, size.tokens), generator=torch.Generator().manual_seed(0))
    shared = out / "models" / f"{slug(kind)}-{dtype}"
    np.save(shared.with_name(f"{shared.name}-ids.npy"), ids.numpy())
    np.save(
        shared.with_name(f"{shared.name}-logits.npy"), torch_logits(model, weights, ids).numpy()
    )
    stored = {name: storage_of(of, plan.target).bits() for name, of in formats.items()}
    sizes = {name: of.shape[0] * of.shape[1] for name, of in formats.items()}
    bits = sum(stored[name] * sizes[name] for name in stored) / sum(sizes.values())
    lowering = {
        "target": target,
        "fingerprint": hashlib.sha256(lowered.vmfb).hexdigest(),
        "compiler": plan.fingerprint()["versions"]["iree-base-compiler"],
        "flags": list(plan.target.flags),
        "bits_per_weight": bits,
        "kernels": dict(plan.paths),
        "logit_errors": {},
        "tolerance": MODEL_TOLERANCE[getattr(torch, dtype)],
        "compile_s": compile_s,
    }
    facts = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "bits_per_weight": bits,
        "layers": {name: {"format": of.label} for name, of in formats.items()},
        "steps": [{"method": name, **options} for name, options in STEPS[kind]],
        "lowering": lowering,
    }
    case = {"folder": folder, "ids": f"{shared}-ids.npy", "logits": f"{shared}-logits.npy"}
    places = {key: Path(of).relative_to(out).as_posix() for key, of in case.items()}
    return Built(places | {"label": kind}, facts)


@cache
def compressed(kind: str, dtype: str, size: Size) -> tuple[nn.Module, dict[str, CompressedWeight]]:
    """The model, and the weights of its blocks in a kind of format."""
    width = size.width
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=size.blocks,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=size.tokens,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().to(getattr(torch, dtype))
    found = {
        name: weight_of(layer.weight.detach().float(), kind)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".layers." in name
    }
    return model, found


def weight_of(W: torch.Tensor, kind: str) -> CompressedWeight:
    """A weight, compressed by the steps of its kind."""
    weight: CompressedWeight = Dense(W)
    for step, options in STEPS[kind]:
        method = registry.get(step)
        weight = method.compress(W, weight, LayerStats(), registry.configure(step, options))
    if "adapter" not in kind:
        return weight
    assert isinstance(weight, Sparse | Quantized)
    generator = torch.Generator().manual_seed(1)
    high, low = (
        (torch.randn(shape, generator=generator) * 0.02).half()
        for shape in ((W.shape[0], RANK), (RANK, W.shape[1]))
    )
    return Adapted(weight, high, low)


def slug(kind: str) -> str:
    """A kind's name as part of a file's name."""
    return re.sub(r"\W+", "-", kind).strip("-")
