"""PATCH: learns which tiles of every weight stay dense and which become 2:4 (arXiv:2509.23410).

Weights are frozen.  Differs from the code, beside what the options name:
- The learning rate follows the number of steps; the code's is for 2,000.
- The one-shot reference for dense tiles is by magnitude; the 2:4 prior may be any earlier step's.
- A layer that ends with all tiles 2:4, or none, is stored as that.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor

from trinity.methods.contract import MethodConfig, ModelTask, Reported
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Sparse, Tiles, tiles
from trinity.methods.tensors import unquantized
from trinity.methods.training.patch import (
    TWO_FOUR,
    Logits,
    between,
    density_term,
    hard_mask,
    magnitude_masks,
    magnitude_term,
    pattern_prior,
    random_logits,
    soft_mask,
    tile_prior,
)


def _read_share(value: Any) -> Any:
    """'25%' as 0.25; pydantic hands over whatever the recipe holds, hence Any."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)%", value.strip())):
        return float(found[1]) / 100
    return value


Ends = tuple[PositiveFloat, PositiveFloat]
Sparsity = Annotated[float, BeforeValidator(_read_share), Field(gt=0, le=0.5)]
WARMUP, BETAS = 5, (0.9, 0.95)
# The code's rate times its steps: 1e-3 in 2,000.  A step of Adam is no longer than about the rate,
# whatever the gradient, so this bounds how far a logit gets; a tile's prior is 0.042 from its turn.
REACH, HIGHEST_RATE = 2.0, 0.02


class PatchConfig(MethodConfig):
    """Defaults are the code's, for the joint mode.

    variant: 'joint' learns patterns and tiles; 'tile' keeps the 2:4 mask of the steps before, and
        learns tiles alone; 'maskllm' makes every tile 2:4 and learns patterns alone
    sparsity: 0.25 or '25%', of all linears together, or with density 'layer' of each; not read by
        'maskllm'
    prior: of the logits: 'steps', the 2:4 masks of the steps before; 'magnitude'; or 'random'
    strength: of the prior   tile: its outputs and inputs
    regularizer: of the kept norms: 'code', or 'paper' with squares and without decay
    density_weight, magnitude_weight: lambda 1 and 2
    learning_rate: of Adam; None is 2 / steps, at most 0.02, which are the code's 1e-3 in 2,000
    epochs: passes over the text; the code takes 512,000 sequences once   batch: sequences of a step
    temperature, pattern_scale, tile_scale: at the first and last step
    weight_decay: of Adam; None is 0.1 for 'maskllm' and 0 otherwise
    """

    variant: Literal["joint", "tile", "maskllm"] = "joint"
    sparsity: Sparsity = 0.25
    density: Literal["global", "layer"] = "global"
    prior: Literal["steps", "magnitude", "random"] = "magnitude"
    strength: PositiveFloat = 3.0
    tile: Annotated[int, Field(ge=4, multiple_of=4)] = tiles.TILE
    regularizer: Literal["code", "paper"] = "code"
    density_weight: NonNegativeFloat = 7.0
    magnitude_weight: NonNegativeFloat = 10.0
    learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    epochs: PositiveInt = 1
    batch: PositiveInt = 256
    temperature: Ends = (4.0, 0.05)
    pattern_scale: Ends = (100.0, 500.0)
    tile_scale: Ends = (25.0, 350.0)
    seed: NonNegativeInt = 0

    @property
    def keeps_formats(self) -> bool:
        """Masks are what is learned."""
        return False

    def rate(self, steps: int) -> float:
        """The highest learning rate of so many steps."""
        return self.learning_rate or min(REACH / steps, HIGHEST_RATE)


def starting(
    name: str, W: Tensor, current: CompressedWeight, config: PatchConfig, random: torch.Generator
) -> Logits:
    """The logits of a layer before the first step.  W: [out, in]   random: of the CPU"""
    shape = (W.shape[0], W.shape[1])
    if shape[1] % 4:
        raise ConfigError(f"{name}: in = {shape[1]} is not a multiple of 4, as 2:4 asks for.")
    base = unquantized(current, name)
    before = base.mask if isinstance(base, Sparse) and base.pattern == TWO_FOUR else None
    if before is None and (config.prior == "steps" or isinstance(base, Sparse)):
        msg = f"{name}: prior 'steps' asks for a 2:4 mask of an earlier step, and there is none."
        if isinstance(base, Sparse):
            msg = f"{name}: is {base.pattern} already. Prune it 2:4, or not at all, before patch."
        raise ConfigError(msg)
    two_four, unstructured = magnitude_masks(W, 1 - config.sparsity)
    P, T = (logits.to(W.device) for logits in random_logits(shape, config.tile, random))
    if config.prior != "random":
        P = pattern_prior(before if config.prior == "steps" else two_four, config.strength)  # type: ignore[arg-type]  # told above
        T = tile_prior(unstructured, config.tile, 1 - config.sparsity, config.strength)
    fixed = two_four if before is None else before
    return Logits(
        shape,
        config.tile,
        P=P.requires_grad_() if config.variant != "tile" else None,
        T=T.requires_grad_() if config.variant != "maskllm" else None,
        fixed=fixed if config.variant == "tile" else None,
        started=T.detach() > 0,
    )


def regularisers(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], config: PatchConfig, done: float
) -> Tensor:
    """What is added to the loss of the text.  masks, weights: [out, in] each  done: 0 to 1"""
    target, power = 1 - config.sparsity, 1 if config.regularizer == "code" else 2
    sums = {name: mask.sum() for name, mask in masks.items()}
    if config.variant == "maskllm":
        density = torch.zeros((), device=next(iter(weights.values())).device)
    elif config.density == "layer":
        terms = [density_term(sums[name], W.numel(), target) for name, W in weights.items()]
        density = torch.stack(terms).mean()
    else:
        total = sum(W.numel() for W in weights.values())
        density = density_term(torch.stack(list(sums.values())).sum(), total, target)
    kept = [(masks[name] * W).norm() ** power for name, W in weights.items()]
    whole = [W.norm() ** power for W in weights.values()]
    share = magnitude_term(torch.stack(kept).sum(), torch.stack(whole).sum())
    decay = 1 - done if config.regularizer == "code" else 1.0
    return config.density_weight * density - config.magnitude_weight * decay * share


@torch.enable_grad()
def learn(task: ModelTask, config: PatchConfig) -> tuple[dict[str, Logits], dict[str, Tensor]]:
    """Train the logits.  -> them and the frozen weights, by layer

    Every sequence of a step has noise of its own.  With one draw for all of them a step's density
    is off its target by chance, in every tile the same way, and Adam hears little else.
    """
    random = torch.Generator("cpu").manual_seed(config.seed)
    weights = {name: task.original(name) for name in task.current}
    logits = {
        name: starting(name, W, task.current[name], config, random) for name, W in weights.items()
    }
    noise = torch.Generator(next(iter(weights.values())).device).manual_seed(config.seed + 1)
    batches = list(torch.split(task.sequences, config.batch)) * config.epochs
    rate, default = config.rate(len(batches)), 0.1 if config.variant == "maskllm" else 0.0
    optimizer = torch.optim.Adam(
        [p for layer in logits.values() for p in layer.parameters],
        betas=BETAS,
        weight_decay=default if config.weight_decay is None else config.weight_decay,
    )
    for step, batch in enumerate(batches):
        done = step / max(1, len(batches) - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, len(batches))
        kappas = between(config.pattern_scale, done), between(config.tile_scale, done)
        tau = between(config.temperature, done)
        optimizer.zero_grad()
        for ids in batch:
            masks = {name: soft_mask(layer, kappas, tau, noise) for name, layer in logits.items()}
            loss = task.loss({name: masks[name] * W for name, W in weights.items()}, ids)
            if not bool(torch.isfinite(loss)):
                raise ConfigError("patch: the loss is not finite. Does the model overflow?")
            loss = loss + regularisers(masks, weights, config, step / len(batches))
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        optimizer.step()
    return logits, weights


def _schedule(step: int, steps: int) -> float:
    """Of the learning rate: linear over five steps, then half a cosine to 0."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def stored(W: Tensor, logits: Logits) -> Reported:
    """The weight under its hard mask, in the format that this mask has.  W: [out, in]"""
    mask = hard_mask(logits)
    sparse = tiles.sparse_tiles(mask, logits.size)
    share = tiles.share_of(sparse, logits.shape, logits.size)
    found: CompressedWeight = Dense(W)
    if share:
        pattern: NM | Tiles = TWO_FOUR if share == 1 else Tiles(share, logits.size)
        found = Sparse(Dense(W), mask, pattern)
    details = {"sparse_tiles": int(sparse.sum()), "tiles": sparse.numel()}
    details["turned_tiles"] = logits.turned
    return Reported(found, details | {"sparsity": 1 - float(mask.float().mean())})


class _Patch:
    name = "patch"
    paper = "arXiv:2509.23410"
    config = PatchConfig

    def compress_model(self, task: ModelTask, config: PatchConfig) -> Mapping[str, Reported]:
        logits, weights = learn(task, config)
        return {name: stored(weights[name], layer) for name, layer in logits.items()}


PATCH = _Patch()
