"""How much memory a training takes at its fullest, counted before a weight is loaded."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from trinity.harness.models import families
from trinity.harness.models.decoder import linear_shape, warnings_off
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.records import available
from trinity.harness.training.workers import Workers
from trinity.methods.errors import MachineError

FLOAT = 4  # bytes of weights, gradients and moments
# What a block keeps beside the inputs and outputs of its linears: norms and sums, in hidden sizes.
KEPT_BESIDE = 4
# Of a divided model, what is whole at once in a backward pass, in blocks: weights of one and of the
# next, gradients, and what processes send each other of two.
WHOLE_BLOCKS = 5
# Logits, their logarithms and their gradient live at once, in float32 whatever the precision.
OF_LOGITS = 3


def needs(config: Any, spec: TrainingSpec, processes: int) -> dict[str, int]:
    """Bytes of one process at the fullest moment of a step.  config: of transformers

    Weights and what goes with them are exact; activations are what the backward pass asks for
    again, within a half (a test compares them for every family).
    """
    with torch.device("meta"), warnings_off():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    blocks: Any = model.get_submodule(families.get(config.model_type).blocks)
    weights = sum(p.numel() for p in model.parameters())
    sparse = sum(p.numel() for p in blocks.parameters() if p.ndim == 2) if spec.pattern else 0
    windows = spec.batch // (processes * spec.accumulate)
    own, gathered = weights, 0
    if spec.sharding == "blocks":
        own, gathered = -(-weights // processes), _gathered(blocks, weights)
    return {
        "weights": FLOAT * own,
        "gradients": FLOAT * own,
        # Of sparse layers two moments and a place of kept entries, about half of all.
        "moments": 2 * FLOAT * own,
        "masks": 2 * sparse,
        "gathered": FLOAT * gathered,
        "copies": _copies(weights - sparse, spec),
        "activations": windows * _activations(blocks, config, spec),
    }


def _copies(dense: int, spec: TrainingSpec) -> int:
    """Bytes of the narrow weights that autograd keeps from the forward pass to the backward pass;
    of a sparse layer it keeps the weight itself.  dense: weights of other layers
    """
    return 2 * dense if spec.precision == "bfloat16" and spec.checkpointing == "none" else 0


def _gathered(blocks: Any, weights: int) -> int:
    """Numbers of other processes' shares that one holds for a moment.  weights: of the whole model

    What is outside the blocks stays whole for a step, with its gradients.
    """
    sizes: list[int] = [sum(p.numel() for p in block.parameters()) for block in blocks]
    return 2 * (weights - sum(sizes)) + WHOLE_BLOCKS * max(sizes)


def _activations(blocks: Any, config: Any, spec: TrainingSpec) -> int:
    """Bytes of one window, its logits included."""
    width = 2 if spec.precision == "bfloat16" else FLOAT
    block = _of_block(blocks[0], config, spec.seqlen, width)
    kept = len(blocks) * block
    if spec.checkpointing == "blocks":
        kept = len(blocks) * spec.seqlen * config.hidden_size * FLOAT + block
    return int(kept + spec.seqlen * config.vocab_size * OF_LOGITS * FLOAT)


def _of_block(block: nn.Module, config: Any, seqlen: int, width: int) -> int:
    """Bytes that the backward pass of one block asks for again.  width: bytes of a number"""
    shapes = [linear_shape(x) for x in block.modules() if isinstance(x, nn.Linear | Conv1D)]
    numbers = sum(map(sum, shapes)) + KEPT_BESIDE * config.hidden_size
    keeps_scores = any(
        getattr(config, name, None)
        for name in ("attn_pdrop", "attention_dropout", "attn_logit_softcapping")
    )
    scores = 2 * config.num_attention_heads * seqlen if keeps_scores else 0
    return int(width * seqlen * (numbers + scores))


def check(config: Any, spec: TrainingSpec, workers: Workers) -> None:
    """MachineError, before anything is loaded, if a training cannot fit."""
    found = needs(config, spec, workers.count)
    here = 0
    if spec.sharding == "blocks" and not workers.rank:
        # What it writes, it collects in main memory.
        here = workers.count * (found["weights"] + found["moments"])
    if workers.device.type == "cuda":
        free = torch.cuda.mem_get_info(workers.device)[0]
        _refuse(found, sum(found.values()), free, "on the GPU")
    else:
        here += workers.local * sum(found.values())
    _refuse(found, here, available.available_bytes(), "on this machine")


def _refuse(found: dict[str, int], total: int, free: int, where: str) -> None:
    """MachineError if `total` bytes are more than the free ones.  found: of a process"""
    if total > free:
        listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in found.items())
        msg = (
            f"training: takes about {total / 1e9:.1f} GB at its fullest (of a process: {listed}), "
            f"and {free / 1e9:.1f} GB are free {where}. `accumulate` holds fewer windows at once, "
            f"`checkpointing: blocks` fewer activations, `sharding: blocks` a share of the weights "
            f"in each of several processes; or take a shorter `seqlen`."
        )
        raise MachineError(msg)
