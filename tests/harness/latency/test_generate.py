import itertools
import time

import pytest
import torch

from tests.harness.tiny import BigramEngine, saying
from trinity.harness.latency import generate
from trinity.harness.statistics import comparison
from trinity.methods.errors import ConfigError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock is a quarter of a second after the one before."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 4)


@pytest.mark.usefixtures("clock")
def test_prefill_gives_seconds_and_prompt_tokens_a_second() -> None:
    ttft, speed = generate.prefill([BigramEngine()], 16, 3)
    assert (ttft.name, ttft.samples, ttft.unit) == ("ttft", [0.25] * 3, "s")
    assert (speed.name, speed.samples, speed.unit) == ("prefill", [64.0] * 3, "tokens/s")
    assert not ttft.higher_is_better
    assert speed.higher_is_better


@pytest.mark.usefixtures("clock")
def test_decode_gives_mean_seconds_a_step_and_tokens_a_second() -> None:
    tpot, speed = generate.decode([BigramEngine()], 4, 5, 3)
    assert (tpot.name, tpot.samples) == ("tpot", [0.25] * 3)
    assert tpot.details["steps_s"] == [[0.25] * 5] * 3
    assert (speed.name, speed.samples) == ("decode", [4.0] * 3)


def test_every_engine_reads_the_same_tokens_in_turn() -> None:
    engines = [BigramEngine(), BigramEngine()]
    found = generate.decode(engines, 4, 2, repeats=3, warmup=1)
    first, second = (engine.read[-9:] for engine in engines)  # after probe and warm-up
    assert first == second
    assert [len(ids) for ids in first] == [4, 1, 1] * 3
    assert [m.engine for m in found] == ["bigram"] * 4
    assert all(m.details["interleaved_with"] == 1 for m in found)


def test_fixed_tokens_do_not_depend_on_the_model() -> None:
    engine = BigramEngine(saying("abcdefgh"))
    generate.decode([engine], 2, 3, repeats=1, warmup=0)
    expected = generate.fixed_tokens(256, (1, 5), 0)[0].tolist()
    assert engine.read[-4:] == [expected[:2], *([token] for token in expected[2:])]


def test_greedy_tokens_are_the_models_own() -> None:
    table = torch.zeros(256, 256)
    table[:, 7] = 1.0
    engine = BigramEngine(table)
    found = generate.decode([engine], 2, 3, repeats=1, warmup=0, tokens="greedy")
    assert engine.read[-3:] == [[7]] * 3
    assert found[0].details["tokens"] == "greedy"


def test_a_model_without_numbers_is_not_timed() -> None:
    table = BigramEngine().table.clone()
    ids = generate.fixed_tokens(256, (1, 5), 0)[0]
    table[ids[4]] = torch.nan  # the last step of decoding
    with pytest.raises(ConfigError, match="latency: the logits of the model in bigram hold NaN"):
        generate.decode([BigramEngine(table)], 2, 3, repeats=1)
    with pytest.raises(ConfigError, match="hold NaN"):
        generate.prefill([BigramEngine(table)], 5, repeats=1)


def test_details_say_all_that_the_number_depends_on() -> None:
    found = generate.decode([BigramEngine()], 4, 2, repeats=2)[1]
    for key in ("batch", "prompt_tokens", "new_tokens", "warmup", "cpu", "torch_threads"):
        assert found.details[key], key
    assert found.details["weights"] == "as stored"


def test_dequantized_weights_are_called_so() -> None:
    engine = BigramEngine()
    engine.path = "simulated"
    assert generate.prefill([engine], 4, 1)[0].details["weights"] == "dequantized to floats"


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"30 prompt and 8 new tokens need 38 positions.*has 32"):
        generate.decode([BigramEngine(max_length=32)], 30, 8, 1)


@pytest.mark.parametrize(("prompt", "new"), [(0, 4), (4, 0)])
def test_nothing_to_time_is_refused(prompt: int, new: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, found 0"):
        generate.decode([BigramEngine()], prompt, new, 1)


@pytest.mark.usefixtures("clock")
def test_the_baseline_is_timed_twice_in_every_round_and_gives_a_speed_up() -> None:
    ours, dense = BigramEngine(), BigramEngine()
    found = generate.decode(
        [ours], 4, 2, repeats=3, baseline=generate.DenseEngine(dense, "the dense model")
    )
    assert [(m.name, m.metric) for m in found] == [
        ("tpot", "tpot_s"),
        ("decode", "tokens_per_s"),
        ("decode", "speedup"),
    ]
    assert len(dense.read[-18:]) == 2 * len(ours.read[-9:])
    assert found[2].value == 1.0
    assert found[2].details["noise_floor"] == 0.0
    assert found[2].details["verdict"] == "no difference shown"
    assert found[2].details["baseline_model"] == "the dense model"


def test_a_timing_says_what_else_happened_on_the_machine() -> None:
    details = generate.prefill([BigramEngine()], 4, 2)[0].details
    assert {"clock_mhz", "throttled", "stolen_s", "major_faults", "load", "pinned_to"} <= set(
        details
    )


@pytest.mark.usefixtures("clock")
def test_a_batch_is_one_time_and_all_its_tokens() -> None:
    ttft, prefill = generate.prefill([BigramEngine()], 16, 3, batch=4)
    assert (ttft.samples, prefill.samples) == ([0.25] * 3, [4 * 64.0] * 3)
    tpot, decode = generate.decode([BigramEngine()], 4, 5, 3, batch=4)
    assert (tpot.samples, decode.samples) == ([0.25] * 3, [4 * 4.0] * 3)


def test_every_sequence_of_a_batch_has_tokens_of_its_own_and_the_same_lengths() -> None:
    engine = BigramEngine()
    generate.decode([engine], 4, 2, repeats=1, batch=2)
    first, second = generate.fixed_tokens(256, (2, 6), 0).tolist()
    assert first != second
    steps = [[first[4]], [second[4]], [first[5]], [second[5]]]
    assert engine.read[-6:] == [first[:4], second[:4], *steps]


def test_each_sequence_of_a_batch_decodes_its_own_greedy_tokens() -> None:
    engine = BigramEngine()
    generate.decode([engine], 2, 1, repeats=1, tokens="greedy", batch=2)
    prompts = generate.fixed_tokens(256, (2, 3), 0)[:, :2]
    expected = [[int(engine.table[prompt[-1]].argmax())] for prompt in prompts]
    assert engine.read[-2:] == expected


def test_a_batch_is_part_of_what_a_measurement_is_called() -> None:
    dense = generate.DenseEngine(BigramEngine(), "the dense model")
    found = {
        batch: generate.prefill([BigramEngine()], 4, 2, batch=batch, baseline=dense)
        + generate.decode([BigramEngine()], 4, 2, 2, batch=batch, baseline=dense)
        for batch in (1, 4)
    }
    names = {batch: [(m.name, m.metric) for m in of] for batch, of in found.items()}
    assert names[1] == [
        ("ttft", "ttft_s"),
        ("prefill", "tokens_per_s"),
        ("prefill", "speedup"),
        ("tpot", "tpot_s"),
        ("decode", "tokens_per_s"),
        ("decode", "speedup"),
    ]
    assert names[4] == [(f"{name}-batch-4", metric) for name, metric in names[1]]
    assert all(m.details["batch"] == batch for batch, of in found.items() for m in of)


def test_measurements_of_different_batches_are_never_compared() -> None:
    dense = generate.DenseEngine(BigramEngine(), "the dense model")
    one, four = (
        generate.decode([BigramEngine()], 4, 2, 2, batch=batch, baseline=dense) for batch in (1, 4)
    )
    assert all(pair.baseline is None for pair in comparison.pairs(four, one))
    assert all(
        pair.baseline is m for pair, m in zip(comparison.pairs(four, four), four, strict=True)
    )


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 sequence, found 0"):
        generate.decode([BigramEngine()], 4, 1, 1, batch=0)
