"""harness/runs/estimate.py: arithmetic that is checked against models and numbers counted here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from trinity.harness.accuracy import sizes
from trinity.harness.latency.ceilings import MATMUL, READ, Ceilings
from trinity.harness.recipes import recipe
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records.measurement import Measurement
from trinity.harness.runs import estimate
from trinity.harness.runs.estimate import Size

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LINEARS, GROUPS = ((400_000, 1000), (400_000, 1000)), [[(400, 1000)]]
SIZE = Size(1_000_000, 1_200_000, 2, LINEARS, 200, 1000, GROUPS, attention=4000)


def _limits(flops: float = 1e9, read: float = 1e9) -> Ceilings:
    made = [
        Measurement(
            name=metric,
            metric=metric,
            value=value,
            unit="",
            higher_is_better=True,
            path="reference",
            engine="torch",
            details={"dtype": "float32"},
        )
        for metric, value in ((MATMUL, flops), (READ, read))
    ]
    return Ceilings(tuple(made))


def _recipe(**sections: Any) -> Recipe:
    return recipe.parse({"model": {"id": "m"}, **sections}, "test")


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
        LlamaConfig(**SIZES, intermediate_size=48, tie_word_embeddings=False),
        LlamaConfig(**SIZES, intermediate_size=48, tie_word_embeddings=True),
    ],
)
def test_sizes_are_those_of_the_model(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    found = estimate.size_of(tmp_path)
    products = sum(weight.numel() for weight in linears)
    assert products <= found.weights <= 1.3 * products  # norms, biases, positions
    assert found.parameters == sum(p.numel() for p in model.parameters())
    in_blocks = [weight for weight in linears if weight is not head.weight]
    positions = 66 * 32 if config.model_type == "opt" else 0  # a table of two dimensions too
    assert found.in_blocks == sum(weight.numel() for weight in in_blocks) + positions
    assert (found.blocks, found.hidden, found.vocabulary) == (2, 32, 96)


def test_a_rows_tokens_are_its_calibration_twice_and_its_suites() -> None:
    run = _recipe(
        compress={"steps": [{"method": "wanda", "pattern": "2:4"}]},
        calibration={"dataset": "c4", "samples": 3, "seqlen": 50},
        evaluate={
            "suites": [
                {"suite": "perplexity-wikitext2", "seqlen": 100, "windows": 7},
                {"suite": "slim-zeroshot", "tasks": ["piqa", "mmlu"], "limit": 10},
            ]
        },
    )
    tasks = 10 * (sizes.TASK_EXAMPLES["piqa"][1] + sizes.TASK_EXAMPLES["mmlu"][1])
    assert estimate.tokens_of(run) == 2 * 3 * 50 + 7 * 100 + tasks
    dense = run.model_copy(update={"compress": recipe.CompressSpec()})
    assert estimate.tokens_of(dense) == 7 * 100 + tasks


def test_evaluating_multiplies_weights_and_positions_at_a_share_of_the_rate() -> None:
    suites = [{"suite": "perplexity-pydoc", "seqlen": 100, "windows": 5}]
    row = estimate.of_row(_recipe(evaluate={"suites": suites}), SIZE, _limits(flops=4e9))
    work = 2 * 1e6 * 500 + 2 * 4000 * 100 * 500
    beside = 500 * SIZE.vocabulary * estimate.LOGIT_S + estimate.READ_S
    assert row.seconds["evaluate"] == pytest.approx(work / 4e9 / estimate.SHARE + beside)


def test_windows_that_two_suites_read_count_once_and_the_dense_models_once_for_all_rows() -> None:
    suites = [
        {"suite": "perplexity-pydoc", "seqlen": 100, "windows": 5},
        {"suite": "fidelity-pydoc", "seqlen": 100, "windows": 2},
    ]
    run = _recipe(evaluate={"suites": suites})
    found = estimate.of_rows([run] * 3, SIZE, _limits(flops=4e9)).seconds["evaluate"]
    work = (2 * 1e6 + 2 * 4000 * 100) * (3 * 500 + 200)
    logits = 3 * SIZE.vocabulary * (500 * estimate.LOGIT_S + 200 * estimate.COMPARED_S)
    first = (3 * 2 + 1) * estimate.READ_S  # of each suite, and of the dense model in one of them
    assert found == pytest.approx(work / 4e9 / estimate.SHARE + logits + first)


def test_decoding_reads_every_weight_for_each_token() -> None:
    bench = {"suites": ["decode"], "prompt": 1, "new": 50, "repeats": 7}
    slow, fast = (
        estimate.of_row(_recipe(bench=bench), SIZE, _limits(1e15, read)).seconds["bench"]
        - estimate.START_S
        for read in (1e9, 2e9)
    )
    calls = 2 * (7 + estimate.WARM_UP)
    assert slow == pytest.approx(calls * 50 * 4e6 / 1e9, rel=1e-3)
    assert slow == pytest.approx(2 * fast, rel=1e-3)


def test_four_bits_take_an_eighth_of_the_disk_and_a_module_takes_it_again() -> None:
    quantized = {"compress": {"steps": [{"method": "rtn", "bits": 4}]}}
    outside = 4 * 400_000
    dense, packed, lowered = (
        estimate.of_row(_recipe(**sections), SIZE, _limits()).disk
        for sections in ({}, quantized, {**quantized, "lower": {"target": "llvm-cpu"}})
    )
    assert dense == 4 * 800_000 + outside
    assert packed == 800_000 // 2 + outside
    assert lowered == 2 * packed


def test_what_rows_share_counts_once() -> None:
    run = _recipe(lower={"target": "llvm-cpu"})
    one, two = (estimate.of_rows([run] * count, SIZE, _limits()) for count in (1, 2))
    assert two.memory == one.memory
    row = estimate.of_row(run, SIZE, _limits())
    assert two.total_s - one.total_s == pytest.approx(row.total_s)
    assert two.disk - one.disk == row.disk
    assert one.total_s > row.total_s


def test_the_model_that_a_run_compares_with_is_stored_compiled_and_read_once_for_all_rows() -> None:
    compared = {
        "compress": {"steps": [{"method": "rtn", "bits": 4}]},
        "lower": {"target": "llvm-cpu"},
        "bench": {"suites": ["decode"], "prompt": 1, "new": 1, "baseline": "dense"},
    }
    row = _recipe(**compared)
    alone, one, two = (
        estimate.of_row(row, SIZE, _limits()),
        estimate.of_rows([row], SIZE, _limits()),
        estimate.of_rows([row] * 2, SIZE, _limits()),
    )
    blocks = SIZE.blocks
    compiled = estimate.COMPILE_S + estimate.COMPILE_BLOCK_S * blocks
    exported = estimate.EXPORT_S + estimate.EXPORT_BLOCK_S * blocks
    assert one.seconds["lower"] - alone.seconds["lower"] == pytest.approx(compiled + exported)
    assert two.total_s - one.total_s == pytest.approx(alone.total_s)
    assert one.disk - alone.disk == 4 * SIZE.parameters
    del compared["bench"]["baseline"]
    assert estimate.of_rows([_recipe(**compared)], SIZE, _limits()).disk == alone.disk


def test_an_adapter_takes_the_singular_values_of_every_layer() -> None:
    plain, fitted = (
        estimate.of_row(
            _recipe(
                compress={"steps": [{"method": method, "pattern": "2:4"}]},
                calibration={"dataset": "pydoc", "samples": 1, "seqlen": 8},
            ),
            SIZE,
            _limits(),
        ).seconds["compress"]
        for method in ("wanda", "slim")
    )
    expected = sum(estimate.DECOMPOSED * 400_000 * 400 for _ in SIZE.linears) / 1e9
    assert fitted - plain == pytest.approx(expected, rel=0.05)


def test_a_search_reads_its_tokens_with_the_whole_model_and_compresses_every_level() -> None:
    search = {"method": "evopress", "levels": 3, "generations": 5, "offspring": 4}
    search |= {"survivors": [2, 1], "tokens": [16, 64]}
    wanda = {"method": "wanda", "pattern": "50%"}
    text = {"dataset": "pydoc", "samples": 4, "seqlen": 16}
    found, plain = (
        estimate.of_row(_recipe(compress={"steps": steps}, calibration=text), SIZE, _limits())
        for steps in ([search, wanda], [wanda])
    )
    # Of seven levels five: the outermost would leave nothing of these layers, or everything.
    tokens = 5 * (4 * 16 + 3 * 64)
    read = 2.0 * (SIZE.weights + SIZE.vocabulary * SIZE.hidden) * tokens / (estimate.SHARE * 1e9)
    made = 2 * 5 * (estimate.LAYER_S + estimate.WEIGHT_S * 400_000 + 2.0 * 400_000 * 1000 / 1e9)
    step = estimate.LAYER_S * 2 + estimate.WEIGHT_S * 800_000  # the second of each layer
    more = found.seconds["compress"] - plain.seconds["compress"]
    assert more == pytest.approx(read + made + step)
    assert found.disk - plain.disk == 5 * 800_000 * 4
