import math

import pytest
import torch

from tests.harness.tiny import BigramEngine, ByteTokenizer
from trinity.harness.accuracy import fidelity
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts import corpora
from trinity.methods.errors import ConfigError


def test_divergence_and_agreement_by_hand() -> None:
    dense = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]).log()
    compressed = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.7, 0.3]]).log()
    divergence, agreement = fidelity.compare(dense, compressed)
    by_hand = [
        0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4),
        0.0,
        0.1 * math.log(0.1 / 0.7) + 0.9 * math.log(0.9 / 0.3),
    ]
    assert divergence == pytest.approx(sum(by_hand) / 3, rel=1e-6)
    assert agreement == pytest.approx(2 / 3)


def test_logits_shifted_by_a_constant_are_the_same_distribution() -> None:
    logits = torch.randn(300, 40)
    divergence, agreement = fidelity.compare(logits, logits + 5.0)
    assert divergence == pytest.approx(0.0, abs=1e-6)
    assert agreement == 1.0


def test_a_model_compared_with_itself_has_no_divergence() -> None:
    corpus = corpora.load("pydoc", "test")
    engine = BigramEngine()
    kl, top = fidelity.evaluate(engine, engine, ByteTokenizer(), corpus, 64, 3)
    assert (kl.metric, kl.value, kl.samples) == ("kl", 0.0, [0.0] * 3)
    assert (top.metric, top.value) == ("top1_agreement", 1.0)
    assert kl.details["positions"] == 3 * 64


def test_a_change_shows_in_every_window() -> None:
    corpus = corpora.load("pydoc", "test")
    dense = BigramEngine()
    # Not seed 0, which the table itself was drawn with.
    noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(5))
    changed = BigramEngine(dense.table + 0.5 * noise)
    kl, top = fidelity.evaluate(changed, dense, ByteTokenizer(), corpus, 64, 4)
    assert all(sample > 0 for sample in kl.samples)
    assert top.value is not None
    assert 0 < top.value < 1
    assert kl.interval is not None
    assert kl.value is not None
    assert kl.interval.low <= kl.value <= kl.interval.high


def test_models_of_other_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match="not the same model"):
        fidelity.compare(torch.zeros(2, 5), torch.zeros(2, 6))


@pytest.mark.parametrize(("who", "said"), [(0, "window 1 of 2:"), (1, "window 1 of 2, the dense")])
def test_not_a_number_in_either_model_is_refused(who: int, said: str) -> None:
    engines = [BigramEngine(), BigramEngine()]
    engines[who] = BigramEngine(torch.full((256, 256), math.nan))
    corpus = corpora.load("pydoc", "test")
    with pytest.raises(ConfigError, match=said):
        fidelity.evaluate(*engines, ByteTokenizer(), corpus, 64, 2)


def test_a_token_too_unlikely_to_hold_adds_nothing_where_the_compressed_model_rules_it_out() -> (
    None
):
    dense, compressed = torch.tensor([[0.0, -200.0, -3.0]]), torch.tensor([[0.0, -torch.inf, -3.0]])
    assert fidelity.compare(dense, compressed) == (0.0, 1.0)


def test_a_token_that_only_the_compressed_model_rules_out_makes_the_divergence_infinite() -> None:
    dense = BigramEngine()
    table = dense.table.clone()
    table[:, ord("x")] = -math.inf
    ruled_out = BigramEngine(table)
    corpus = corpora.load("pydoc", "test")
    kl, top = fidelity.evaluate(ruled_out, dense, ByteTokenizer(), corpus, 64, 2)
    assert (kl.value, kl.samples) == (None, [])
    assert kl.reason is not None
    assert kl.reason.startswith("infinite: in 2 of 2 windows")
    assert top.value is not None
    # The other way round it adds nothing: p log p is 0 at 0.
    other = fidelity.evaluate(dense, ruled_out, ByteTokenizer(), corpus, 64, 2)[0].value
    assert other is not None
    assert math.isfinite(other)
    share = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    even = torch.full((1, 3), 1 / 3)
    expected = sum(p * math.log(3 * p) for p in (0.25, 0.75))
    assert fidelity.compare(share.log(), even.log())[0] == pytest.approx(expected, rel=1e-6)


def answered(answers: list[int], **details: object) -> Measurement:
    common = {
        "answers": answers,
        "examples": len(answers),
        "examples_available": 9,
        "task_version": "1.0",
        "num_fewshot": 0,
        "lm_eval_version": "0",
        "documents_sha256": "d",
    }
    return Measurement(
        name="piqa",
        metric="acc",
        value=0.5,
        unit="1",
        higher_is_better=True,
        path="simulated",
        engine="torch",
        samples=[1.0] * len(answers),
        details={**common, **details},
    )


def test_a_flip_is_another_answer_whether_right_or_wrong() -> None:
    (found,) = fidelity.flips([answered([0, 1, 2, 3])], [answered([0, 1, 1, 1])], "flips")
    assert (found.metric, found.value, found.samples) == ("flip_rate", 0.5, [0.0, 0.0, 1.0, 1.0])


def test_flips_need_the_same_examples() -> None:
    with pytest.raises(ConfigError, match="other examples"):
        fidelity.flips([answered([0])], [answered([0], documents_sha256="e")], "flips")
