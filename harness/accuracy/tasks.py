"""Zero-shot tasks through lm-evaluation-harness on any Engine.  With `task_definitions` the only
import of lm_eval.

Importing it also registers the model `trinity` with lm-eval, for
`lm_eval.simple_evaluate(model=TrinityLM(...))` and for scripts of one's own.  lm-eval 0.4.13
loads no entry points, so its command line cannot find the model unasked.

Tokenisation is that of lm-eval's HFLM with default arguments: the tokenizer's own special tokens
(so a BOS token exactly if the tokenizer adds one, and an end token between question and answer if
it appends one, which the record then says), none added where the text already starts with BOS,
the BOS or else EOS token as the only context of an empty one, and left truncation.
Different from it: no padding, answers share their question's forward, log-softmax in float32.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import datasets
import lm_eval
import torch
from lm_eval import evaluator, utils
from lm_eval.api import task as lm_eval_task
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from trinity.harness.accuracy import task_data, task_definitions
from trinity.harness.accuracy.scoring import Request, evenly_spaced, scores
from trinity.harness.accuracy.task_definitions import METRIC
from trinity.harness.engines import finite
from trinity.harness.engines.engine import Engine
from trinity.harness.records.facts import AVERAGE, EVENLY_SPACED, Average, OfSuite, Questions
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import intervals
from trinity.harness.texts.corpora import Tokenizer, appended, content_hash
from trinity.methods.errors import ConfigError, UnsupportedError

log = logging.getLogger(__name__)

BATCH = 16  # questions in one forward
_DIGITS = 6  # of log-likelihoods in records: float32 has no more that mean anything
_MAX_NEW_TOKENS = 256  # HFLM's default


@register_model("trinity")
class TrinityLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """An Engine as an lm-eval model."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, batch: int = BATCH) -> None:
        """batch: questions in one forward, where the engine can; changes the speed only."""
        super().__init__()
        self.engine = engine
        self.tokenizer = tokenizer
        self.batch = batch
        self.truncated = 0  # requests cut on the left because the engine's context is too short

    @property
    def max_length(self) -> int:
        """Tokens that the engine reads at most."""
        return self.engine.max_length

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        if self.tokenizer.eos_token_id is None:
            msg = (
                "the tokenizer names no EOS token, which lm-eval needs to end a text. Set it in "
                "tokenizer_config.json."
            )
            raise ConfigError(msg)
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The context of an empty context: BOS, or EOS for a tokenizer without one."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Text to ids, as HFLM does by default."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(
                self.tokenizer.decode([self.prefix_token_id])
            )
        # verbose=False: no warning about texts longer than the context; they are cut, and counted,
        # below.
        ids: list[int] = self.tokenizer(
            string, add_special_tokens=add_special_tokens, verbose=False
        )["input_ids"]
        return ids

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations; without lm-eval's progress bars unless asked for."""
        answers: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm
        )
        _check_answers(requests, answers)
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        """Scores of continuations, in order."""
        asked: list[Request] = []
        for _text, context, continuation in requests:
            tokens = (context + continuation)[:-1]
            self.truncated += len(tokens) > self.max_length
            asked.append(Request(tuple(tokens[-self.max_length :]), tuple(continuation)))

        def progress(done: int, of: int) -> None:
            log.info("%d of %d continuations scored", done, of)

        found = scores(self.engine, asked, self.batch, progress)
        return [(score.log_likelihood, score.greedy) for score in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows of the engine's context."""
        totals: list[float] = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(math.fsum(score for score, _ in self._loglikelihood_tokens(pieces)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to a stop text."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature"):
            msg = (
                f"generation with sampling ({options}) is not supported: only greedy decoding is "
                "deterministic."
            )
            raise UnsupportedError(msg)
        until = options.get("until") or []
        stops = [
            *([until] if isinstance(until, str) else until),
            self.tokenizer.decode([self.eot_token_id]),
        ]
        room = int(options.get("max_gen_toks", _MAX_NEW_TOKENS))
        if room >= self.max_length:
            msg = (
                f"max_gen_toks {room} leaves no room for a prompt in {self.max_length} tokens. "
                "Lower it."
            )
            raise ConfigError(msg)
        prompt = self.tok_encode(context)
        self.truncated += len(prompt) > self.max_length - room
        session = self.engine.session()
        ids = torch.tensor([prompt[room - self.max_length :]], dtype=torch.int64)
        logits = session.prefill(ids)
        tokens: list[int] = []
        text = ""
        while len(tokens) < room:
            if not finite.are_numbers(logits):
                raise finite.refuse(self.engine, torch.tensor([*ids[0].tolist(), *tokens]))
            token = int(logits[0].argmax())
            if token == self.eot_token_id:
                break
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if any(stop and stop in text for stop in stops) or len(tokens) == room:
                break
            logits = session.step(torch.tensor([token]))
        for stop in filter(None, stops):
            text = text.split(stop)[0]
        return text


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    limit: int | None = None,
    *,
    suite: str | None = None,
    versions: Mapping[str, str] | None = None,
    batch: int = BATCH,
) -> list[Measurement]:
    """Accuracy of each task in order, then their unweighted mean if there are several.

    limit: examples a task: the first ones, evenly spaced ones where the file is sorted by subject
    versions: of tasks that the suite is about; another one in lm-eval is refused
    Samples are 1 or 0 an example, in the file's order.
    """
    if limit is not None and limit < 1:
        msg = (
            f"zero-shot tasks: limit is {limit}. Set at least 1, or leave it out for all examples."
        )
        raise ConfigError(msg)
    ending = tokenizer.decode(appended(tokenizer))
    # As lm-eval's hf model does, or numbers would be no one else's; but not without a word.
    noted = {"tokenizer_appends": f"{ending}, which lm-eval leaves between question and answer"}
    if ending:
        log.warning("the tokenizer appends %s: %s", ending, noted["tokenizer_appends"])
    measured = []
    for name in tasks:
        model = TrinityLM(engine, tokenizer, batch)
        found = _evaluate_one(model, name, limit, (versions or {}).get(name))
        found = OfSuite(suite=suite).added_to(found)
        said = found.details | (noted if ending else {})
        measured.append(found.model_copy(update={"details": said}))
    return [*measured, _average(measured)] if len(measured) > 1 else measured


def _evaluate_one(
    model: TrinityLM, name: str, limit: int | None, version: str | None
) -> Measurement:
    engine = model.engine
    with _quiet(), finite.said_of(f"task {name}"):
        loaded = task_definitions.load(name)
        task = loaded.task
        _check_version(task, name, version)
        total = len(task.eval_docs)
        spread = name in task_data.SORTED_BY_SUBJECT
        chosen = evenly_spaced(total, limit) if spread else list(range(total))[:limit]
        task_definitions.check(loaded, name, chosen)
        log.info("task %s: %d of %d examples", name, len(chosen), total)
        results = evaluator.evaluate(
            lm=model,
            task_dict={"tasks": {name: task}},
            samples={name: chosen},
            bootstrap_iters=0,
        )
    samples = sorted(results["samples"][name], key=lambda sample: int(sample["doc_id"]))
    correct = _right_or_wrong(name, samples, len(chosen))
    if model.truncated:
        log.warning(
            "task %s: %d requests are longer than the %d tokens that %s reads, and were cut on the "
            "left: the model did not see all of these questions",
            name,
            model.truncated,
            model.max_length,
            engine.name,
        )
    right = round(sum(correct))
    how = EVENLY_SPACED if spread and limit else "first"
    asked = _asked(model, name, total, how, results, samples)
    said = {
        "evaluation": "no padding; answers share their question's forward where the engine can",
    }
    return Measurement(
        name=name,
        metric=METRIC,
        value=right / len(correct),
        unit="1",
        higher_is_better=True,
        path=engine.path,
        engine=engine.name,
        interval=intervals.wilson_interval(right, len(correct)),
        samples=correct,
        details=asked.details() | said | loaded.source,
    )


def _asked(
    model: TrinityLM,
    name: str,
    available: int,
    chosen: str,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
) -> Questions:
    """What a record says of a task's questions.

    available: of the task   chosen: how   results: lm-eval's   samples: in the file's order
    """
    return Questions(
        examples=len(samples),
        examples_available=available,
        examples_published=task_data.published_examples(name),
        examples_chosen=chosen,
        num_fewshot=int(results["n-shot"][name]),
        task_version=results["versions"][name],
        lm_eval_version=lm_eval.__version__,
        lm_eval_key=f"{METRIC},none",
        pooled=name == "mmlu",
        documents_sha256=content_hash(sample["doc_hash"] for sample in samples),
        requests_truncated_on_the_left=model.truncated,
        answers=[_answer(sample) for sample in samples],
        log_likelihoods=[_log_likelihoods(sample) for sample in samples],
    )


def _right_or_wrong(name: str, samples: list[Mapping[str, Any]], examples: int) -> list[float]:
    """1 or 0 an example; UnsupportedError for a task that is not scored so."""
    found = [float(sample[METRIC]) for sample in samples]
    if len(found) != examples or not {0.0, 1.0}.issuperset(found):
        msg = (
            f"task {name}: its '{METRIC}' is not one answer an example, right or wrong, so it has "
            f"neither an interval nor a test here. Use another task."
        )
        raise UnsupportedError(msg)
    return found


def _average(tasks: list[Measurement]) -> Measurement:
    means = [math.fsum(task.samples) / len(task.samples) for task in tasks]
    of = Average(
        tasks=[task.name for task in tasks],
        questions=sum(len(task.samples) for task in tasks),
        questions_published=sum(map(_whole, tasks)),
    )
    return Measurement(
        name=AVERAGE,
        metric=METRIC,
        value=math.fsum(means) / len(means),
        unit="1",
        higher_is_better=True,
        path=tasks[0].path,
        engine=tasks[0].engine,
        interval=intervals.average_interval([task.samples for task in tasks]),
        samples=means,
        details=of.details() | OfSuite.of(tasks[0]).details() | {"weights": "equal"},
    )


def _whole(task: Measurement) -> int:
    """Questions of a task as it was published, as far as that is known."""
    asked = Questions.of(task)
    return asked.examples_published or asked.examples_available or len(task.samples)


def _log_likelihoods(sample: Mapping[str, Any]) -> list[float | None]:
    """Of each continuation of an example, in lm-eval's order; none where text was generated.

    None for an answer that the model rules out: JSON has no minus infinity.
    """
    responses = [response for (response,) in sample["resps"]]
    found = [float(r[0]) for r in responses if isinstance(r, tuple)]
    return [round(value, _DIGITS) if math.isfinite(value) else None for value in found]


def _answer(sample: Mapping[str, Any]) -> int:
    """The likeliest continuation, the first of equal ones; with one only, whether it is greedy."""
    responses = [response for (response,) in sample["resps"] if isinstance(response, tuple)]
    if "acc_mutual_info" in sample["metrics"]:  # then each is asked a second time, without context
        responses = responses[: len(responses) // 2]
    if len(responses) < 2:
        return int(sample[METRIC])
    likelihoods = [float(r[0]) for r in responses]
    return likelihoods.index(max(likelihoods))


def _check_answers(requests: list[Instance], answers: list[tuple[float, bool]]) -> None:
    """Refuse a question of several answers all of which the model rules out: none is likeliest."""
    likelihoods: dict[int | None, list[float]] = {}
    for request, (likelihood, _) in zip(requests, answers, strict=True):
        likelihoods.setdefault(request.doc_id, []).append(likelihood)
    for example, found in likelihoods.items():
        if len(found) > 1 and example is not None and max(found) == -math.inf:
            msg = f"the model rules out every answer of example {example}, so none is likeliest."
            raise finite.NotFiniteError(msg)


def _check_version(task: lm_eval_task.Task, name: str, version: str | None) -> None:
    """ConfigError if the suite is about another version of a task than lm-eval has."""
    if version is not None and str(task.VERSION) != version:
        msg = (
            f"task {name}: the suite is about version {version}, and lm-eval "
            f"{lm_eval.__version__} has version {task.VERSION}: their numbers cannot be compared. "
            f"Install the lm-eval of constraints.txt, or name the new version in a suite of your "
            f"own."
        )
        raise ConfigError(msg)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of `datasets` and lm-eval and its log, which would bury our own progress."""
    chatty = logging.getLogger("lm_eval")
    level = chatty.level
    bars = datasets.is_progress_bar_enabled()
    progress = lm_eval_task.tqdm
    chatty.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval_task.tqdm = partial(progress, disable=True)  # it has no switch of its own
    try:
        yield
    finally:
        lm_eval_task.tqdm = progress
        chatty.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
