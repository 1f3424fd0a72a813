"""SLoPe pretraining of a tiny model: a real run, small enough for two processor cores.

The steps are `trinity.methods.slope_training`; here they are put into a Hugging Face model, run on
real text, and saved in the layout that SLoPe releases (`ckpt_{step}.pt`), which the source `slope`
reads.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trinity.harness.models import families
from trinity.harness.models.decoder import warnings_off
from trinity.harness.models.folders import companions
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.store.stages import write_json
from trinity.harness.terminal.progress import Reporter
from trinity.harness.texts import corpora
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, parse_pattern
from trinity.methods.slope_training import (
    AdamW,
    SparseMoments,
    adapted,
    double_mask,
    double_pruned,
    magnitude_mask,
    new_adapter,
    random_mask,
)

MASK_CHANGE_STEPS = 100  # the code's mask_change_freq: how long a second mask is kept
ADAPTER_DECAY = 1e-4  # the code's, in its BERT script
LOG = "training.json"


class SlopeLinear(nn.Module):
    """A linear trained sparse.  Its state dict is that of SLoPe's accuracy code.

    weight: [out, in], zero outside the mask   lora_left: [in, r], lora_right: [r, out], once added
    """

    row_mask: Tensor
    both_masks: Tensor
    lora_left: nn.Parameter | None
    lora_right: nn.Parameter | None

    def __init__(self, linear: nn.Linear, mask: Tensor, pattern: NM, *, exact: bool) -> None:
        """mask: bool [out, in], static; exact: the input gradient sees the whole weight."""
        super().__init__()
        self.pattern, self.exact = pattern, exact
        self.weight = nn.Parameter(linear.weight.detach() * mask)
        self.bias = linear.bias
        self.register_buffer("row_mask", mask, persistent=False)
        self.register_buffer("both_masks", mask, persistent=False)
        self.register_parameter("lora_left", None)
        self.register_parameter("lora_right", None)
        self.moments = SparseMoments(mask)
        self.prune_again()

    def prune_again(self) -> None:
        """Choose the second mask of the weight as it is now."""
        self.both_masks = self.row_mask
        if not self.exact:
            self.both_masks = double_mask(self.weight, self.row_mask, self.pattern)

    def add_adapter(self, rank: int, generator: torch.Generator) -> list[nn.Parameter]:
        """Lazy adapters that change nothing yet; their parameters, for the optimiser."""
        out, d_in = self.weight.shape
        left, right = new_adapter((out, d_in), rank, generator)
        self.lora_left, self.lora_right = nn.Parameter(left), nn.Parameter(right)
        return [self.lora_left, self.lora_right]

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]  ->  [..., out]"""
        y = double_pruned(x, self.weight, self.row_mask, self.both_masks)
        if self.bias is not None:
            y = y + self.bias
        if self.lora_left is not None and self.lora_right is not None:
            y = adapted(x, y, self.lora_left, self.lora_right)
        return y


def write(folder: Path, *, start: Path, spec: TrainingSpec, reporter: Reporter) -> None:
    """Fill a stage with a trained model.  start: the untrained one, whose tokenizer is used"""
    train(start, tokenizer_of(start), spec, folder, reporter)


def train(
    start: Path, tokenizer: corpora.Tokenizer, spec: TrainingSpec, out: Path, reporter: Reporter
) -> None:
    """Train a model and write `out/ckpt_{steps}.pt`, its configuration, tokenizer and losses.

    start: a folder with the untrained model, whose weights are where training begins
    """
    corpus = corpora.load(spec.dataset, spec.split)
    ids = corpora.token_ids(tokenizer, "\n\n".join(corpus.documents))
    generator = torch.Generator().manual_seed(spec.seed)
    with warnings_off():
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    layers = _make_sparse(model, spec, generator) if spec.pattern else {}
    losses, optimizer = _run(model, layers, ids, spec, generator, reporter)
    write_checkpoint(out, spec.steps, model.state_dict(), optimizer)
    for path in companions(start):
        shutil.copyfile(path, out / path.name)
    log = {"losses": losses, "text": corpus.source, "text_sha256": corpus.sha256}
    write_json(out / LOG, {**log, "training": spec.model_dump(mode="json")})


def write_checkpoint(
    folder: Path, step: int, state: Mapping[str, Tensor], optimizer: Mapping[str, Any]
) -> Path:
    """The file of SLoPe's accuracy code: weights dense with zeros, no mask, adapters by name."""
    path = folder / f"ckpt_{step}.pt"
    torch.save(
        {"model": dict(state), "optimizer": dict(optimizer), "sampler": None, "epoch": 0}, path
    )
    return path


def _make_sparse(
    model: nn.Module, spec: TrainingSpec, generator: torch.Generator
) -> dict[str, SlopeLinear]:
    """Replace the linears of the blocks, all but the first ones after the input (the paper)."""
    pattern = parse_pattern(str(spec.pattern))
    if not isinstance(pattern, NM):
        msg = f"training.pattern {pattern}: SLoPe trains N:M weights, for example '2:4'."
        raise ConfigError(msg)
    layers = {}
    for name in _sparse_names(model):
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            kind = type(linear).__name__
            msg = f"training: {name} is a {kind}; only nn.Linear is trained sparse."
            raise ConfigError(msg)
        out, d_in = linear.weight.shape
        if spec.mask == "random":
            mask = random_mask((out, d_in), pattern, generator)
        else:
            mask = magnitude_mask(linear.weight, pattern)
        layers[name] = SlopeLinear(linear, mask, pattern, exact=spec.backward == "exact")
        model.set_submodule(name, layers[name])
    return layers


def _sparse_names(model: Any) -> Iterator[str]:
    """model: a Hugging Face model of a known family (transformers has no common type for it)."""
    family = families.get(model.config.model_type)
    for index in range(len(model.get_submodule(family.blocks))):
        for number, group in enumerate(family.groups):
            if (index, number) != (0, 0):
                yield from (f"{family.blocks}.{index}.{name}" for name in group)


def _run(
    model: Any,
    layers: Mapping[str, SlopeLinear],
    ids: Tensor,
    spec: TrainingSpec,
    generator: torch.Generator,
    reporter: Reporter,
) -> tuple[list[float], dict[str, Any]]:
    """The loop.  -> loss of every step in nats per token, state of the optimisers"""
    sparse = {id(layer.weight) for layer in layers.values()}
    options = AdamW(lr=spec.lr)
    dense = torch.optim.AdamW(
        [p for p in model.parameters() if id(p) not in sparse],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
    )
    lazy_from = spec.steps - max(1, round(spec.adapter_share * spec.steps))
    losses = []
    model.train()
    for step in range(spec.steps):
        if spec.rank and step == lazy_from:
            added = [p for x in layers.values() for p in x.add_adapter(spec.rank, generator)]
            dense.add_param_group({"params": added, "weight_decay": ADAPTER_DECAY})
        if step % MASK_CHANGE_STEPS == 0:
            for layer in layers.values():
                layer.prune_again()
        starts = torch.randint(0, len(ids) - spec.seqlen, (spec.batch,), generator=generator)
        windows = torch.stack([ids[i : i + spec.seqlen] for i in starts.tolist()])
        loss = model(input_ids=windows, labels=windows).loss
        model.zero_grad()
        loss.backward()
        dense.step()
        with torch.no_grad():
            for layer in layers.values():
                assert layer.weight.grad is not None  # the loss depends on every layer
                layer.moments.step(layer.weight, layer.weight.grad, options)
        losses.append(loss.item())
        reporter.step("training", step + 1, spec.steps)
    moments = {
        name: {"m": layer.moments.m, "v": layer.moments.v, "steps": layer.moments.steps}
        for name, layer in layers.items()
    }
    return losses, {"dense": dense.state_dict(), "sparse": moments}
