"""Steps to a loss: MKOR beside SGD, AdamW, LAMB and K-FAC, on small models of bytes.

    python benchmarks/mkor_training.py --model causal --json FILE
    python benchmarks/mkor_training.py --read FILE --targets 2.5    # its table with other losses

Each optimizer gets the same windows and starts.  Its learning rate is the best of three on a seed
that is not counted; then every seed trains once.  A run reaches a loss when the mean of ten steps
is below it.  Seconds are of the machine as it was: they mean something only on an idle one.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig

from trinity.harness.models.decoder import warnings_off
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.records.environment import environment
from trinity.harness.store.stages import write_json
from trinity.harness.terminal.progress import Reporter
from trinity.harness.texts import corpora
from trinity.harness.training import loop
from trinity.harness.training.workers import alone
from trinity.methods.errors import ConfigError
from trinity.methods.training.kfac import Kfac, KfacOptions
from trinity.methods.training.lamb import Lamb
from trinity.methods.training.mkor import Mkor, MkorOptions

TUNED_ON, SMOOTHED = 1000, 10
MASK, VOCABULARY = 256, 257  # bytes, and what stands for a hidden one
HIDDEN_SHARE = 0.15  # of the bytes that a BERT is asked for
UNLABELLED = -100  # torch's mark of a place without a loss
MODELS = {
    "causal": "a Llama of two blocks of width 64, on bytes",
    "masked": "a BERT of two blocks of width 64, on bytes",
}
HEADS = ("lm_head", "cls.predictions.decoder")

LEGEND = (
    "Means over seeds with 95% intervals; steps until the mean loss of ten is that low, if every "
    "seed came there.\nSeconds mean something where the machine does nothing else."
)

Maker = Callable[[nn.Module, float], torch.optim.Optimizer]


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """With momentum: what the preconditioners wrap, too."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Torch's, with its defaults."""
    return torch.optim.AdamW(model.parameters(), lr=lr)


def lamb(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Ours."""
    return Lamb(model.parameters(), lr=lr)


def kfac(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Over SGD, inverted every ten steps."""
    return Kfac(model, sgd(model, lr), KfacOptions(skip=HEADS))


def mkor(update: Any, base: Maker, **options: Any) -> Maker:
    """Over another optimizer, factors updated every ten steps."""

    def make(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return Mkor(model, base(model, lr), MkorOptions(update=update, skip=HEADS, **options))

    return make


OF_SGD, OF_ADAM = (0.03, 0.1, 0.3), (1e-3, 3e-3, 1e-2)
OPTIMIZERS: dict[str, tuple[Maker, tuple[float, ...]]] = {
    "SGD": (sgd, OF_SGD),
    "AdamW": (adamw, OF_ADAM),
    "LAMB": (lamb, (3e-3, 1e-2, 3e-2)),
    "K-FAC over SGD": (kfac, OF_SGD),
    "MKOR over SGD": (mkor("exact", sgd), OF_SGD),
    "MKOR over SGD, code": (mkor("code", sgd), OF_SGD),
    "MKOR over SGD, paper": (mkor("paper", sgd), OF_SGD),
    "MKOR-H over SGD": (mkor("exact", sgd, switch_below=0.02, window=25), OF_SGD),
    "MKOR over AdamW": (mkor("exact", adamw), OF_ADAM),
}


class Compared:
    """A job of the loop: a small model and one optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, masked: bool) -> None:
        """masked: the model is asked for hidden bytes, not for the next one."""
        self.model, self.optimizer, self.masked = model, optimizer, masked
        self.last = 0.0

    def begin(self, step: int) -> bool:
        """Nothing is added."""
        return False

    def loss(self, model: nn.Module, windows: Tensor) -> Tensor:
        """In nats per byte that is asked for."""
        inputs, labels = windows, windows
        if self.masked:
            hidden = torch.rand(windows.shape) < HIDDEN_SHARE
            inputs = windows.masked_fill(hidden, MASK)
            labels = windows.masked_fill(~hidden, UNLABELLED)
        loss: Tensor = model(input_ids=inputs, labels=labels).loss
        self.last = loss.item()
        return loss

    def update(self, lr: float) -> None:
        """The schedule is part of the comparison: all have the same."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if isinstance(self.optimizer, Mkor):
            self.optimizer.observe(self.last)

    def state(self) -> dict[str, Any]:
        """No run is long enough to be resumed."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """As `state`."""


def small_model(kind: str, seed: int) -> nn.Module:
    """Two blocks of width 64.  kind: causal (Llama) or masked (BERT)"""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(seed)
    with warnings_off():
        if kind == "causal":
            model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
        else:
            model = AutoModelForMaskedLM.from_config(BertConfig(**sizes))
    made: nn.Module = model
    return made


def trained(kind: str, name: str, lr: float, seed: int, steps: int, ids: Tensor) -> dict[str, Any]:
    """One run.  -> losses of every step, seconds of all"""
    spec = TrainingSpec(
        steps=steps, batch=8, seqlen=64, lr=lr, seed=seed, warmup=10, schedule="cosine"
    )
    model = small_model(kind, seed)
    job = Compared(model, OPTIMIZERS[name][0](model, lr), kind == "masked")
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    try:
        losses = loop.run(
            job, ids, spec, generator, alone(torch.device("cpu")), Reporter(quiet=True)
        ).losses
    except ConfigError as error:
        if "the loss of step" not in str(error):
            raise
        losses = []  # diverged
    return {"losses": losses, "seconds": time.perf_counter() - start, "lr": lr, "seed": seed}


def end(losses: list[float]) -> float:
    """Mean of the last tenth; infinite if the run diverged."""
    return float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else float("inf")


def steps_to(losses: list[float], target: float) -> float:
    """The first step after which the mean of ten is below a loss; NaN if none is."""
    if len(losses) < SMOOTHED:
        return float("nan")
    means = np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
    below = np.flatnonzero(means <= target)
    return float(below[0] + SMOOTHED) if len(below) else float("nan")


def cell(values: list[float], digits: int) -> str:
    """Mean with its 95% interval by Student's t; how many seeds there are, if not all have one."""
    there = np.array([v for v in values if np.isfinite(v)])
    if len(there) < len(values) or len(there) < 2:
        return f"{len(there)} of {len(values)} seeds"
    half = stats.t.ppf(0.975, len(there) - 1) * there.std(ddof=1) / len(there) ** 0.5
    mean = there.mean()
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"


def compared(
    kind: str, names: list[str], seeds: int, steps: int, reporter: Reporter
) -> dict[str, list[dict[str, Any]]]:
    """Every named optimizer's runs, at its best rate."""
    text = "\n\n".join(corpora.load("pydoc", "train").documents)
    ids = torch.tensor(list(text.encode()), dtype=torch.int64)
    found: dict[str, list[dict[str, Any]]] = {}
    one_more = reporter.counter("trainings", sum(len(OPTIMIZERS[n][1]) + seeds for n in names))

    def run(name: str, lr: float, seed: int) -> dict[str, Any]:
        made = trained(kind, name, lr, seed, steps, ids)
        one_more()
        return made

    for name in names:
        tried = {lr: run(name, lr, TUNED_ON) for lr in OPTIMIZERS[name][1]}
        best = min(tried, key=lambda lr: end(tried[lr]["losses"]))
        found[name] = [run(name, best, seed) for seed in range(seeds)]
        losses = cell([end(made["losses"]) for made in found[name]], 3)
        reporter.say(f"{name}: the best of three rates is {best:g}, loss at the end {losses}")
    return found


def rate(name: str, lr: float) -> str:
    """A learning rate, and whether another one beyond those that were tried may be better."""
    rates = OPTIMIZERS[name][1]
    ends = {min(rates): ", the lowest tried", max(rates): ", the highest tried"}
    return f"{lr:g}{ends.get(lr, '')}"


def table(found: Mapping[str, list[dict[str, Any]]], targets: list[float]) -> str:
    """In Markdown, a row an optimizer.

    Losses at the end are also compared with those of the first row, on the same windows by seed.
    """
    names = [name for name in OPTIMIZERS if name in found]  # a record has another order
    first = [end(run["losses"]) for run in found[names[0]]]
    heads = [f"steps to {target:g}" for target in targets]
    heads += ["loss at the end", f"beside {names[0]}", "seconds of a step"]
    lines = [f"| | rate | {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) + 1)]
    for name in names:
        runs = found[name]
        ends = [end(run["losses"]) for run in runs]
        beside = [own - its for own, its in zip(ends, first, strict=True)]
        each = np.median([run["seconds"] / max(1, len(run["losses"])) for run in runs])
        cells = [cell([steps_to(run["losses"], t) for run in runs], 0) for t in targets]
        cells += [cell(ends, 3), cell(beside, 3) if name != names[0] else "", f"{each:.4f}"]
        lines.append(f"| {name} | {rate(name, runs[0]['lr'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=["causal", "masked"], default="causal")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--targets", type=float, nargs="+", default=[3.0, 2.7])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help="a record, whose table is printed")
    asked = parser.parse_args()
    if asked.read:
        found = json.loads(asked.read.read_text("utf-8"))["runs"]
        print(f"{table(found, asked.targets)}\n\n{LEGEND}")
        return
    with Reporter() as reporter:
        reporter.say(f"{MODELS[asked.model]}, {asked.steps} steps, {asked.seeds} seeds")
        found = compared(asked.model, asked.optimizers, asked.seeds, asked.steps, reporter)
    print(f"{table(found, asked.targets)}\n\n{LEGEND}")
    if asked.json:
        options = {"model": asked.model, "steps": asked.steps, "targets": asked.targets}
        record = {"schema": "mkor-training/1", **options, "runs": found}
        write_json(asked.json, record | {"environment": environment()})


if __name__ == "__main__":
    main()
