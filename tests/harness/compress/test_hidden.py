from pathlib import Path

import pytest
import torch
from torch import Tensor

from trinity.harness.compress import hidden
from trinity.harness.compress.hidden import Hidden
from trinity.harness.records import available
from trinity.methods.errors import MachineError


@pytest.fixture(params=[False, True], ids=["in memory", "in a file"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Hidden, list[Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden, "SHARE_IN_MEMORY", 0 if request.param else 1)
        given = [torch.randn(1, 5, 7, dtype=torch.bfloat16) for _ in range(3)]
        made = Hidden(3, given[0], tmp_path)
    assert made.in_file == request.param
    for index, state in enumerate(given):
        made[index] = state
    return made, given


def test_states_come_back_in_order(states: tuple[Hidden, list[Tensor]]) -> None:
    made, given = states
    assert len(made) == 3
    assert all(torch.equal(one, other) for one, other in zip(made, given, strict=True))


def test_a_block_replaces_each_state_by_what_it_makes_of_it(
    states: tuple[Hidden, list[Tensor]],
) -> None:
    made, given = states
    made.replace(lambda state: state * 2)
    assert all(torch.equal(one, other * 2) for one, other in zip(made, given, strict=True))


def test_whoever_changes_a_state_it_may_only_read_changes_that_one(
    states: tuple[Hidden, list[Tensor]],
) -> None:
    made, _ = states
    before = [state._version for state in made]
    made[1].zero_()
    assert [state._version - old for state, old in zip(made, before, strict=True)] == [0, 1, 0]


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "available_bytes", lambda: 0)
    made = Hidden(3, torch.ones(1, 5, 7), tmp_path)
    assert made.in_file
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_no_room_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hidden.os, "posix_fallocate", full)
    monkeypatch.setattr(hidden, "SHARE_IN_MEMORY", 0)
    with pytest.raises(MachineError, match=r"cannot be written .No space left on device"):
        Hidden(3, torch.ones(1, 5, 7), tmp_path)
