from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trinity.harness.latency import ceilings, machine
from trinity.harness.latency.ceilings import Ceilings
from trinity.harness.records.measurement import Measurement
from trinity.harness.store.stages import StageStore


def test_every_ceiling_says_its_threads_when_it_was_measured_and_keeps_its_samples() -> None:
    found = ceilings.measured().measurements
    assert {m.metric for m in found} == {ceilings.READ, ceilings.MATMUL}
    assert {m.details.get("dtype") for m in found} >= {"float32", "bfloat16", "float16"}
    for m in found:
        assert m.value == max(m.samples) > 0
        assert m.details["threads"] >= 1
        assert m.details["measured_at"].endswith("+00:00")
        assert m.details["meanwhile"]["load"] >= 0


def test_memory_is_read_in_the_way_that_is_fastest_here(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, read = torch.arange(64.0).reshape(4, 16), []

    def rates(call: Callable[[], Tensor], size: int) -> list[float]:
        assert size == matrix.nbytes
        read.append(call())
        return [[10.0, 11.0], [20.0, 43.0], [30.0, 25.0]][len(read) - 1]

    monkeypatch.setattr(ceilings, "_rates", rates)
    found = ceilings._bandwidth(matrix, torch.ones(16), 1)
    assert (found.value, found.details["read_by"]) == (43.0, "a sum")
    product, total, largest = read  # of every word: what each leaves depends on all of them
    assert torch.equal(product, matrix.sum(dim=1))
    assert total == matrix.sum()
    assert largest == matrix.view(torch.int32).max()


def test_products_of_one_thread_are_measured_beside_those_of_all_which_wait_for_each_other() -> (
    None
):
    with ceilings._threads(2):
        found = {m.name: m.details for m in ceilings.measured().measurements}
    assert found["ceiling-matmul-float32-1-threads"]["threads"] == 1
    assert found["ceiling-matmul-float32"]["threads"] == 2


def test_ceilings_are_measured_once_and_again_where_the_store_is_to_be_fresh(
    tmp_path: Path,
) -> None:
    first = ceilings.kept(StageStore(tmp_path))
    assert ceilings.kept(StageStore(tmp_path)) == first
    assert ceilings.kept(StageStore(tmp_path, fresh=True)) != first


@pytest.mark.parametrize("seen", ["cpu", "cpus_usable", "torch_threads"])
def test_another_processor_or_another_share_of_it_has_ceilings_of_its_own(
    seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, here = ceilings.kept(StageStore(tmp_path)), machine.describe()
    monkeypatch.setattr(machine, "describe", lambda: here | {seen: "another"})
    assert ceilings.kept(StageStore(tmp_path)) != first


def test_ceilings_of_a_busy_machine_are_replaced_by_those_of_an_idle_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for load in (50.0, 60.0, 0.5, 70.0):
        monkeypatch.setattr(machine.os, "getloadavg", lambda load=load: (load, load, load))
        found.append(ceilings.kept(StageStore(tmp_path)))
    assert found[0] == found[1] != found[2] == found[3]


def _products(dtype: str, value: float, threads: int = 2) -> Measurement:
    return Measurement(
        name=f"ceiling-matmul-{dtype}",
        metric=ceilings.MATMUL,
        value=value,
        unit="flop/s",
        higher_is_better=True,
        path="reference",
        engine="torch",
        details={"dtype": dtype, "threads": threads},
    )


def test_the_rate_of_a_type_is_its_own_or_that_of_float32_which_holds_it() -> None:
    found = Ceilings(
        (_products("float32", 2e11), _products("bfloat16", 8e11), _products("float16", 1e9))
    )
    assert found.products("bfloat16") == 8e11
    assert found.products("float32") == found.products("float16") == 2e11


def test_what_works_in_one_thread_has_the_rate_of_one_where_it_was_measured() -> None:
    two, one, other = (
        _products("float32", 2e11),
        _products("float32", 1e11, threads=1),
        _products("bfloat16", 4e11, threads=1),
    )
    assert Ceilings((two, one, other)).alone == 1e11
    assert Ceilings((two, other)).alone == 2e11


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2"}, ceilings.NO_INSTRUCTIONS),
        ({"avx2", "avx512_bf16", "amx_bf16"}, "amx_bf16, avx512_bf16"),
        (None, None),
    ],
)
def test_a_type_says_which_instructions_multiply_it(
    known: set[str] | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instructions", lambda: known)
    assert ceilings.instructions(torch.bfloat16) == expected
    assert ceilings.instructions(torch.float32) is None


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


def test_a_slow_type_is_measured_once_and_at_no_larger_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 1000, 3))  # every call takes three seconds
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: next(clock))
    found = ceilings._products(torch.float16, threads=1)
    assert found.details["side"] == 4
    assert found.samples == [2 * 4**3 / 3]


def test_a_fast_type_is_measured_on_the_largest_matrices() -> None:
    found = ceilings._products(torch.float32, threads=1)
    assert found.details["side"] == 8
    assert len(found.samples) >= ceilings._REPEATS
