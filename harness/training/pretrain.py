"""Pretraining, sparse as SLoPe does it or dense: a model folder and a text in, a checkpoint out.

The mathematics is `trinity.methods.training.slope`; what comes out is the layout that SLoPe
releases (`ckpt_{step}.pt`), which the source `slope` reads.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM

from trinity.harness.models.decoder import warnings_off
from trinity.harness.models.folders import companions
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.store.stages import as_json, fingerprint, write_json
from trinity.harness.store.writing import write_text
from trinity.harness.terminal.progress import Reporter
from trinity.harness.texts import corpora
from trinity.harness.training import loop, memory, sharding
from trinity.harness.training.slope_linear import make_sparse
from trinity.harness.training.snapshots import Snapshots
from trinity.harness.training.workers import Workers, alone
from trinity.methods.training.slope import AdamW, SparseMoments

MASK_CHANGE_STEPS = 100  # the code's mask_change_freq: how long a second mask is kept
ADAPTER_DECAY = 1e-4  # the code's, in its BERT script
LOG = "training.json"
# Beside it, of the processes and their times: not a file that goes with a model, so that two
# trainings of the same numbers are the same model.
RUNS = "training-runs.jsonl"
# A trained model's hash holds what LOG says: fields that came later are said where they are used.
FIRST_FIELDS = {
    "pattern",
    "mask",
    "backward",
    "rank",
    "adapter_share",
    "steps",
    "batch",
    "seqlen",
    "lr",
    "seed",
    "dataset",
    "split",
}


@dataclass(frozen=True)
class Start:
    """The model where training begins.

    sha256: of its folder, so that no snapshot is continued from another model
    """

    folder: Path
    sha256: str


def write(folder: Path, *, start: Start, spec: TrainingSpec, reporter: Reporter) -> None:
    """Fill a stage with a trained model, on the CPU, in one go."""
    workers = alone(torch.device("cpu"))
    train(start, tokenizer_of(start.folder), spec, folder, workers, reporter)


def train(
    start: Start,
    tokenizer: corpora.Tokenizer,
    spec: TrainingSpec,
    out: Path,
    workers: Workers,
    reporter: Reporter,
    snapshots: tuple[Path, int] | None = None,
) -> loop.Course:
    """Train a model and write `out/ckpt_{steps}.pt`, its configuration, tokenizer and losses.

    out: made by the first process alone   snapshots: their folder, and the steps between two
    """
    loop.check_shares(spec, workers.count)
    sharding.check(spec, workers.count)
    config = AutoConfig.from_pretrained(start.folder)
    memory.check(config, spec, workers)
    corpus = corpora.load(spec.dataset, spec.split)
    ids = corpora.token_ids(tokenizer, "\n\n".join(corpus.documents))
    asked = {
        "start": start.sha256,
        "training": spec.model_dump(mode="json"),
        "text": corpus.sha256,
        "processes": workers.count,
    }
    kept = Snapshots(snapshots[0], fingerprint(asked), snapshots[1]) if snapshots else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        generator = torch.Generator().manual_seed(spec.seed)
        job = make_job(start.folder, config, spec, generator, workers)
        course = loop.run(job, ids, spec, generator, workers, reporter, kept)
    state = job.state()
    if workers.rank == 0:
        _write(out, start.folder, state, spec, corpus, course)
    workers.wait()
    return course


def write_checkpoint(
    folder: Path, step: int, state: Mapping[str, Tensor], optimizer: Mapping[str, Any]
) -> Path:
    """The file of SLoPe's accuracy code: weights dense with zeros, no mask, adapters by name."""
    path = folder / f"ckpt_{step}.pt"
    data = {"model": dict(state), "optimizer": dict(optimizer), "sampler": None, "epoch": 0}
    torch.save(_of_equal_texts(data), path)
    return path


def _of_equal_texts(data: Any) -> Any:
    """The same data in which equal texts are one object: pickle writes an object that it saw before
    as a reference, and whether two equal texts are one depends on where they were read.
    """
    if isinstance(data, dict):
        return {_of_equal_texts(key): _of_equal_texts(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(_of_equal_texts, data))
    return sys.intern(data) if isinstance(data, str) else data


class SlopeJob:
    """AdamW on a model, with SLoPe's linears where the training has a pattern."""

    def __init__(
        self,
        model: Any,
        spec: TrainingSpec,
        generator: torch.Generator,
        mesh: DeviceMesh | None = None,
    ) -> None:
        """model: of transformers.  generator: of masks and adapters

        mesh: of the processes to divide the model over, and where; none leaves it as it is
        """
        self.spec, self.generator = spec, generator
        self.layers = make_sparse(model, spec, generator) if spec.pattern else {}
        self.model: nn.Module = model
        if spec.checkpointing == "blocks":
            model.activation_checkpointing_enable({"use_reentrant": False})
        if mesh is not None:
            for layer in self.layers.values() if spec.rank else ():
                layer.reserve_adapter(spec.rank)  # those that came later would not be divided
            sharding.shard(model, mesh)
        self.moments = {
            name: SparseMoments(sharding.rows(layer.row_mask, layer.weight))
            for name, layer in self.layers.items()
        }
        sparse = {
            id(parameter)
            for layer in self.layers.values()
            for parameter in (layer.weight, layer.lora_left, layer.lora_right)
        }
        self.options = AdamW(lr=spec.lr)
        self.dense = torch.optim.AdamW(
            [p for p in model.parameters() if id(p) not in sparse],
            lr=self.options.lr,
            betas=self.options.betas,
            eps=self.options.eps,
            weight_decay=self.options.weight_decay,
        )
        self.lazy_from = spec.steps - max(1, round(spec.adapter_share * spec.steps))

    def begin(self, step: int) -> bool:
        """Adapters when they are due, and second masks."""
        due = bool(self.layers and self.spec.rank and step == self.lazy_from)
        if due:
            self._add_adapters()
        if step % MASK_CHANGE_STEPS == 0:
            for layer in self.layers.values():
                layer.prune_again()
        return due

    def loss(self, model: nn.Module, windows: Tensor) -> Tensor:
        """Of the next token."""
        with sharding.views_allowed():
            loss: Tensor = model(input_ids=windows, labels=windows, use_cache=False).loss
        return loss

    def update(self, lr: float) -> None:
        """AdamW on dense parameters and on kept entries."""
        for group in self.dense.param_groups:
            group["lr"] = lr
        self.dense.step()
        options = AdamW(lr, self.options.betas, self.options.eps, self.options.weight_decay)
        with torch.no_grad():
            for name, layer in self.layers.items():
                assert layer.weight.grad is not None  # the loss depends on every layer
                weight, gradient = map(sharding.local, (layer.weight, layer.weight.grad))
                self.moments[name].step(weight, gradient, options)

    def state(self) -> dict[str, Any]:
        """Parameters, optimizers, and the second masks, which live longer than a step.

        Of a divided model, the first process's has every tensor whole.
        """
        dense = {"model": self.model.state_dict(keep_vars=True), "dense": self.dense.state_dict()}
        found = sharding.all_collected(dense)
        sparse = {name: self._moments(name) for name in self.layers}
        masks = {name: layer.both_masks for name, layer in self.layers.items()}
        optimizers = {"dense": found["dense"], "sparse": sparse}
        return {"model": found["model"], "optimizers": optimizers, "masks": masks}

    def _moments(self, name: str) -> dict[str, Any]:
        """m, v: [kept]"""
        layer, moments = self.layers[name], self.moments[name]
        of_row = layer.weight.shape[1] * layer.pattern.n // layer.pattern.m
        m, v = (
            sharding.collected(sharding.divided(x.view(-1, of_row), layer.weight)).flatten()
            for x in (moments.m, moments.v)
        )
        return {"m": m, "v": v, "steps": moments.steps}

    def load(self, state: dict[str, Any]) -> None:
        """Into a job with the same first masks."""
        dense = state["optimizers"]["dense"]
        if len(dense["param_groups"]) > len(self.dense.param_groups):
            self._add_adapters()
        model = self.model.state_dict()
        self.model.load_state_dict(
            {name: sharding.share(kept, model[name]) for name, kept in state["model"].items()}
        )
        self.dense.load_state_dict({**dense, "state": self._dense_shares(dense["state"])})
        for name, layer in self.layers.items():
            moments, kept = self.moments[name], state["optimizers"]["sparse"][name]
            moments.m, moments.v = (
                sharding.rows(kept[key].view(len(layer.weight), -1), layer.weight)
                .flatten()
                .to(layer.weight.device)
                for key in ("m", "v")
            )
            moments.steps = kept["steps"]
            layer.both_masks = state["masks"][name].to(layer.weight.device)

    def _dense_shares(self, state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """This process's of the moments that were kept, by the number of their parameter."""
        parameters = [p for group in self.dense.param_groups for p in group["params"]]
        return {
            number: {
                key: sharding.share(x, parameters[number]) if key != "step" else x
                for key, x in kept.items()
            }
            for number, kept in state.items()
        }

    def _add_adapters(self) -> None:
        added: list[nn.Parameter] = []
        for layer in self.layers.values():
            added += layer.add_adapter(self.spec.rank, self.generator)
        self.dense.add_param_group({"params": added, "weight_decay": ADAPTER_DECAY})


def make_job(
    folder: Path, config: Any, spec: TrainingSpec, generator: torch.Generator, workers: Workers
) -> SlopeJob:
    """On the workers' device; one process of a machine after another has a whole model, if it is
    to be divided.
    """
    if spec.sharding == "none":
        return SlopeJob(_model(folder, config, spec).to(workers.device), spec, generator)
    mesh = workers.mesh()
    return workers.in_turn(lambda: SlopeJob(_model(folder, config, spec), spec, generator, mesh))


def _model(folder: Path, config: Any, spec: TrainingSpec) -> Any:
    """In float32, from the folder's weights, or from random numbers of the seed."""
    with warnings_off():
        if spec.start == "weights":
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(spec.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _write(
    out: Path,
    start: Path,
    state: dict[str, Any],
    spec: TrainingSpec,
    corpus: corpora.TextCorpus,
    course: loop.Course,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out, spec.steps, state["model"], state["optimizers"])
    for path in companions(start):
        shutil.copyfile(path, out / path.name)
    said = spec.model_dump(mode="json")
    first = {key: said[key] for key in FIRST_FIELDS}
    later = spec.model_dump(mode="json", exclude_defaults=True)
    log = {"losses": course.losses, "text": corpus.source, "text_sha256": corpus.sha256}
    write_json(out / LOG, {**log, "training": {**first, **later}})
    write_text(out / RUNS, "".join(" ".join(as_json(r).split()) + "\n" for r in course.runs))
