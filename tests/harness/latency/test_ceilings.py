import pytest

from trinity.harness.latency import ceilings
from trinity.harness.records.measurement import Measurement


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_BUFFER", 1 << 16)
    monkeypatch.setattr(ceilings, "_SIDE", 8)
    ceilings.ceilings.cache_clear()


def test_every_ceiling_says_its_threads_and_keeps_its_samples() -> None:
    found = ceilings.ceilings()
    assert {m.metric for m in found} == {ceilings.READ, ceilings.MATMUL}
    assert {m.details.get("dtype") for m in found} >= {"float32", "bfloat16", "float16"}
    for m in found:
        assert m.value == max(m.samples) > 0
        assert m.details["threads"] >= 1


def test_the_ceiling_of_a_dtype_is_its_own() -> None:
    rates = {m.details.get("dtype"): m.value for m in ceilings.ceilings()}
    assert ceilings.ceiling(ceilings.MATMUL, dtype="bfloat16") == rates["bfloat16"]
    assert ceilings.ceiling(ceilings.READ) > 0


def test_a_latency_carries_its_floor_and_its_share() -> None:
    m = Measurement(
        name="tpot",
        metric="tpot_s",
        value=0.05,
        unit="s",
        higher_is_better=False,
        path="compiled",
        engine="iree",
    )
    found = ceilings.with_share(m, 0.02, "weights over read bandwidth")
    assert found.details["floor_share"] == pytest.approx(0.4)
    assert found.details["floor_s"] == 0.02
