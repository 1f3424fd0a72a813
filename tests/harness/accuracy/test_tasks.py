import gzip
import json
import logging
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from jinja2 import Environment
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.harness import families, tokenizers
from tests.harness.tiny import BigramEngine, ByteTokenizer, saying
from trinity.harness.accuracy import task_data, task_definitions, tasks
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.texts import corpora
from trinity.methods.errors import ConfigError, UnsupportedError

QUESTIONS = [
    {"goal": "to sit", "sol1": "chair", "sol2": "spoon", "label": 0},
    {"goal": "to eat", "sol1": "stone", "sol2": "spoon", "label": 1},
    {"goal": "to see", "sol1": "nests", "sol2": "spoon", "label": 0},
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(corpora.DATA_DIR, str(tmp_path))
    write(tmp_path / "piqa" / "validation.jsonl.gz", QUESTIONS)
    return tmp_path


@pytest.fixture(scope="module")
def models(stories260k: Path) -> tuple[tasks.TrinityLM, HFLM]:
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    ours = tasks.TrinityLM(TorchEngine(model, 512, "reference"), tokenizer)
    return ours, HFLM(pretrained=model, tokenizer=tokenizer)


def requests(name: str, count: int) -> list[Instance]:
    task = task_definitions.load(name).task
    task.build_all_requests(limit=count)
    return list(task.instances)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.mark.parametrize("name", ["piqa", "arc_easy", "winogrande", "openbookqa", "mmlu"])
def test_log_likelihoods_and_answers_are_those_of_lm_evals_own_model(
    name: str,
    models: tuple[tasks.TrinityLM, HFLM],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(corpora.DATA_DIR, str(data_dir))
    if task_data.at_hand(name):
        pytest.skip(f"missing: {task_data.at_hand(name)}")
    ours, theirs = models
    wanted = requests(name, 8)
    found, expected = ours.loglikelihood(wanted), theirs.loglikelihood(wanted, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_an_empty_context_and_a_given_bos_are_read_as_lm_eval_reads_them(
    models: tuple[tasks.TrinityLM, HFLM],
) -> None:
    ours, theirs = models
    wanted = asked("loglikelihood", ("", "Once upon"), ("<s>Once", " upon"), ("Once ", "upon a"))
    found = ours.loglikelihood(wanted)
    # One at a time: lm-eval 0.4.13 reads the wrong rows for answers of unequal length that share
    # an input, as the first two do here.
    expected = [theirs.loglikelihood([one], disable_tqdm=True)[0] for one in wanted]
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-4)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_every_kind_of_tokenizer_is_used_as_lm_eval_uses_it(kind: str) -> None:
    tokenizer = tokenizers.KINDS[kind]()
    config = LlamaConfig(**{**families._COMMON, "vocab_size": len(tokenizer)})
    model = AutoModelForCausalLM.from_config(config)
    ours = tasks.TrinityLM(TorchEngine(model, 64, "reference"), tokenizer)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, max_length=64)
    pairs = [("Q: a word? ", "word"), ("to say", " a word"), ("", "word"), ("<s>a", " wo")]
    for wanted in (asked("loglikelihood", pair) for pair in pairs):
        (found,) = ours.loglikelihood(wanted)
        (expected,) = theirs.loglikelihood(wanted, disable_tqdm=True)
        assert found[0] == pytest.approx(expected[0], abs=1e-4)


def test_an_appended_end_token_is_said(local: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizers.KINDS["byte-level, EOS"]()
    table = torch.zeros(len(tokenizer), len(tokenizer))
    (found,) = tasks.evaluate(BigramEngine(table), tokenizer, ["piqa"])
    assert found.details["tokenizer_appends"].startswith("</s>, ")
    assert "appends </s>" in caplog.text


def test_rolling_likelihood_of_a_text_longer_than_the_context_is_that_of_lm_eval(
    models: tuple[tasks.TrinityLM, HFLM],
) -> None:
    ours, theirs = models
    wanted = asked("loglikelihood_rolling", ("Once upon a time there was a cat. " * 60,), ("Hi",))
    found = ours.loglikelihood_rolling(wanted)
    assert found == pytest.approx(theirs.loglikelihood_rolling(wanted, disable_tqdm=True), abs=1e-2)


def test_greedy_generation_is_that_of_lm_eval(models: tuple[tasks.TrinityLM, HFLM]) -> None:
    ours, theirs = models
    options = {"until": ["."], "max_gen_toks": 40, "do_sample": False}
    wanted = asked("generate_until", ("Once upon a time", options), ("The dog", options))
    found = ours.generate_until(wanted)
    assert found == theirs.generate_until(wanted, disable_tqdm=True)
    assert all(text and "." not in text for text in found)


def test_one_token_answers_of_a_question_cost_one_forward() -> None:
    engine = BigramEngine()
    model = tasks.TrinityLM(engine, ByteTokenizer())
    wanted = asked("loglikelihood", ("Q?", "A"), ("Q?", "B"), ("Q!", "A"), ("Q?", "A"))
    found = model.loglikelihood(wanted)
    assert engine.read == [list(b"Q?"), list(b"Q!")]
    rows = engine.table.log_softmax(-1)
    assert found[1][0] == pytest.approx(float(rows[ord("?"), ord("B")]), abs=1e-6)
    assert found[0] == found[3]


def test_a_context_that_is_too_long_is_cut_on_the_left_and_counted() -> None:
    engine = BigramEngine(max_length=4)
    model = tasks.TrinityLM(engine, ByteTokenizer())
    model.loglikelihood(asked("loglikelihood", ("abcdefgh", "ij"), ("abc", "d")))
    assert engine.read == [list(b"fghi"), list(b"abc")]
    assert model.truncated == 1


def test_generation_stops_at_the_token_limit_and_at_the_end_of_text() -> None:
    engine = BigramEngine(saying("abcde"))
    model = tasks.TrinityLM(engine, ByteTokenizer())
    options = {"until": [], "max_gen_toks": 3}
    assert model.generate_until(asked("generate_until", ("xa", options))) == ["bcd"]
    assert model.generate_until(asked("generate_until", ("xc", options))) == ["de"]


def test_sampling_is_refused() -> None:
    model = tasks.TrinityLM(BigramEngine(), ByteTokenizer())
    with pytest.raises(UnsupportedError, match="only greedy decoding"):
        model.generate_until(asked("generate_until", ("x", {"do_sample": True})))


def test_accuracy_is_the_share_of_questions_whose_right_answer_is_likeliest(local: Path) -> None:
    # The table spells " chair", which beats " spoon".  Neither answer of the other questions has a
    # bigram of it: they are equally likely, and lm-eval takes the first.
    (found,) = tasks.evaluate(BigramEngine(saying(" chair")), ByteTokenizer(), ["piqa"])
    assert found.samples == [1.0, 0.0, 1.0]
    assert found.value == pytest.approx(2 / 3)
    assert (found.name, found.metric) == ("piqa", "acc")
    assert found.details["source"] == "TRINITY_DATA_DIR/piqa/validation.jsonl.gz"
    assert found.details["num_fewshot"] == 0
    assert found.details["lm_eval_version"] == lm_eval.__version__


def test_accuracy_and_every_answer_are_those_of_lm_evals_own_run(local: Path) -> None:
    torch.manual_seed(1)
    tokenizer = tokenizers.KINDS["byte-level, BOS"]()
    config = LlamaConfig(
        **{**families._COMMON, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    )
    model = AutoModelForCausalLM.from_config(config)
    rows = [
        {"goal": f"to {n}", "sol1": "a chair" * (1 + n % 3), "sol2": f"{n} spoons", "label": n % 2}
        for n in range(12)
    ]
    write(local / "piqa" / "validation.jsonl.gz", rows)
    (ours,) = tasks.evaluate(TorchEngine(model, 256, "reference"), tokenizer, ["piqa"])
    theirs = evaluator.evaluate(
        lm=HFLM(pretrained=model, tokenizer=tokenizer, max_length=256, batch_size=4),
        task_dict={"piqa": task_definitions.load("piqa").task},
        bootstrap_iters=0,
    )
    assert ours.value == theirs["results"]["piqa"]["acc,none"]
    assert 0 < ours.value < 1
    samples = sorted(theirs["samples"]["piqa"], key=lambda sample: sample["doc_id"])
    assert ours.samples == [sample["acc"] for sample in samples]


def test_questions_that_the_model_cannot_read_whole_are_said(
    local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = tasks.evaluate(BigramEngine(max_length=16), ByteTokenizer(), ["piqa"])
    assert found.details["requests_truncated_on_the_left"] == 6
    assert "task piqa: 6 requests are longer than the 16 tokens" in caplog.text


def test_a_limit_takes_the_first_examples(local: Path) -> None:
    (found,) = tasks.evaluate(BigramEngine(saying(" chair")), ByteTokenizer(), ["piqa"], 2)
    assert found.samples == [1.0, 0.0]
    assert found.details["examples_available"] == 3


def test_several_tasks_end_with_their_unweighted_mean(local: Path) -> None:
    rows = [{"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}] * 7
    write(local / "winogrande" / "validation.jsonl.gz", rows)
    found = tasks.evaluate(BigramEngine(), ByteTokenizer(), ["winogrande", "piqa"])
    assert [m.name for m in found] == ["winogrande", "piqa", "average"]
    assert found[2].value == pytest.approx((found[0].value + found[1].value) / 2)
    assert found[2].samples == [found[0].value, found[1].value]
    said = {"questions": 7 + 3, "questions_published": 1267 + 1838}
    assert said.items() <= found[2].details.items()


def test_pooled_mmlu_describes_all_57_subjects_as_lm_eval_does() -> None:
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    subjects = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("mmlu_*.yaml"))]
    assert len(subjects) == 57
    ours = Environment(keep_trailing_newline=True).from_string(
        task_data.TASKS["mmlu"].always["description"]
    )
    for subject in subjects:
        assert ours.render(subject=subject["dataset_name"]) == subject["description"]


def test_a_limit_on_mmlu_reaches_every_part_of_the_file(local: Path) -> None:
    rows = [
        {"subject": f"topic_{n}", "question": f"{n}?", "choices": list("wxyz"), "answer": n % 4}
        for n in range(8)
    ]
    write(local / "mmlu" / "test.jsonl.gz", rows)
    engine = BigramEngine()
    (found,) = tasks.evaluate(engine, ByteTokenizer(), ["mmlu"], 4)
    prompts = [bytes(ids).decode() for ids in engine.read]
    assert len(prompts) == 4  # A, B, C and D share one forward
    assert [prompt.partition("\n\n")[2][0] for prompt in prompts] == ["0", "2", "4", "6"]
    assert prompts[1].startswith(
        "The following are multiple choice questions (with answers) about topic 2.\n\n2?\nA. w\n"
    )
    assert found.details["examples_chosen"] == "evenly spaced"


def test_the_model_is_registered_with_lm_eval() -> None:
    assert get_model("trinity") is tasks.TrinityLM


def test_an_evaluation_leaves_lm_evals_logging_and_progress_bars_as_they_were(local: Path) -> None:
    before = (logging.getLogger("lm_eval").level, tasks.lm_eval_task.tqdm)
    tasks.evaluate(BigramEngine(), ByteTokenizer(), ["piqa"])
    assert (logging.getLogger("lm_eval").level, tasks.lm_eval_task.tqdm) == before


def test_a_limit_below_one_is_refused(local: Path) -> None:
    with pytest.raises(ConfigError, match="limit is 0"):
        tasks.evaluate(BigramEngine(), ByteTokenizer(), ["piqa"], 0)


@pytest.mark.parametrize("name", ["piqa", "arc_easy", "winogrande", "mmlu"])
def test_scores_do_not_depend_on_how_many_questions_are_read_at_once(
    name: str,
    models: tuple[tasks.TrinityLM, HFLM],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(corpora.DATA_DIR, str(data_dir))
    if task_data.at_hand(name):
        pytest.skip(f"missing: {task_data.at_hand(name)}")
    engine, tokenizer = models[0].engine, models[0].tokenizer
    found = [tasks.evaluate(engine, tokenizer, [name], 10, batch=batch)[0] for batch in (1, 4, 16)]
    for other in found[1:]:
        assert other.samples == found[0].samples
        assert other.details["answers"] == found[0].details["answers"]
        for a, b in zip(
            other.details["log_likelihoods"], found[0].details["log_likelihoods"], strict=True
        ):
            assert a == pytest.approx(b, abs=1e-4)


def test_an_answer_is_one_of_those_asked_with_their_question() -> None:
    asked_twice = [[(-3.0, False)], [(-2.0, False)], [(-1.0, False)], [(-9.0, False)]]
    sample = {"resps": asked_twice, "metrics": ["acc", "acc_mutual_info"]}
    assert tasks._answer(sample) == 1
    assert tasks._answer({**sample, "metrics": ["acc"]}) == 2


def test_a_model_without_numbers_has_no_accuracy(local: Path) -> None:
    engine = BigramEngine(torch.full((256, 256), torch.nan))
    with pytest.raises(ConfigError, match=r"task piqa: the logits .* hold NaN or infinity"):
        tasks.evaluate(engine, ByteTokenizer(), ["piqa"])
    model = tasks.TrinityLM(engine, ByteTokenizer())
    with pytest.raises(ConfigError, match="hold NaN or infinity"):
        model.generate_until(asked("generate_until", ("x", {"max_gen_toks": 3})))
    with pytest.raises(ConfigError, match="hold NaN or infinity"):
        model.loglikelihood_rolling(asked("loglikelihood_rolling", ("some text",)))


def test_an_answer_that_the_model_rules_out_is_not_chosen(local: Path) -> None:
    table = torch.zeros(256, 256)
    table[ord("h"), ord("a")] = -torch.inf  # of "chair"
    (found,) = tasks.evaluate(BigramEngine(table), ByteTokenizer(), ["piqa"], 1)
    assert found.details["answers"] == [1]
    assert found.details["log_likelihoods"][0][0] is None
    table[ord("p"), ord("o")] = -torch.inf  # of "spoon"
    with pytest.raises(ConfigError, match=r"task piqa: the model rules out every answer of .* 0"):
        tasks.evaluate(BigramEngine(table), ByteTokenizer(), ["piqa"], 1)


def test_a_second_evaluation_gives_the_same_bytes(local: Path) -> None:
    one, two = (
        tasks.evaluate(BigramEngine(), ByteTokenizer(), ["piqa"])[0].model_dump_json()
        for _ in range(2)
    )
    assert one == two


def test_likelihoods_and_answers_of_every_example_are_kept(local: Path) -> None:
    (found,) = tasks.evaluate(BigramEngine(saying(" chair")), ByteTokenizer(), ["piqa"])
    assert found.details["answers"] == [0, 0, 0]
    assert [len(pair) for pair in found.details["log_likelihoods"]] == [2, 2, 2]
    first = found.details["log_likelihoods"][0]
    assert first[0] > first[1]


def test_another_version_of_a_task_is_refused(local: Path) -> None:
    with pytest.raises(ConfigError, match=r"task piqa: .*version 0\.0.*has version 1\.0"):
        tasks.evaluate(BigramEngine(), ByteTokenizer(), ["piqa"], versions={"piqa": "0.0"})
