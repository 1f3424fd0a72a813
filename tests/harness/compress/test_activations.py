import pytest
import torch
from torch import Tensor, nn

from trinity.harness.compress.activations import EnoughError, collected, ended_early
from trinity.methods.contract import Statistic


class _Counted(nn.Linear):
    """A linear that counts what it computes."""

    computed = 0

    def forward(self, x: Tensor) -> Tensor:
        self.computed += 1
        return super().forward(x)


def test_a_forward_ends_before_the_last_linear_and_its_input_is_taken_in() -> None:
    block = nn.Sequential(_Counted(4, 4), _Counted(4, 2), nn.ReLU())
    first, last, x = block[0], block[1], torch.ones(3, 5, 4)
    modules = {"first": first, "last": last}
    with (
        torch.no_grad(),
        collected(modules, [["first"], ["last"]], Statistic.NOTHING) as stats,
        ended_early([first, last]),
    ):
        for sequence in x:
            with pytest.raises(EnoughError):
                block(sequence[None])
    assert (first.computed, last.computed) == (3, 0)
    expected = first(x).reshape(-1, 4).square().sum(0)
    assert torch.allclose(stats()["last"].x_norm.square() * 3, expected)
    assert block(x).shape == (3, 5, 2)  # no hook is left


def test_every_fourth_sequence_is_held_out_from_the_first() -> None:
    linear, x = nn.Linear(4, 2), torch.randn(9, 5, 4)
    with torch.no_grad(), collected({"a": linear}, [["a"]], Statistic.HELD_OUT) as stats:
        linear(x[:2])  # two at once, then one by one
        for sequence in x[2:]:
            linear(sequence[None])
    found = stats()["a"]
    held = x[[0, 4, 8]].double().reshape(-1, 4)
    assert (found.tokens, found.tokens_held_out) == (45, 15)
    assert found.H is not None
    assert found.H_held_out is not None
    torch.testing.assert_close(found.H_held_out.double(), 2 / 15 * held.T @ held)
    whole = x.double().reshape(-1, 4)
    torch.testing.assert_close(found.H.double(), 2 / 45 * whole.T @ whole)


def test_nothing_is_held_out_unasked() -> None:
    linear = nn.Linear(4, 2)
    with torch.no_grad(), collected({"a": linear}, [["a"]], Statistic.HESSIAN) as stats:
        linear(torch.randn(9, 5, 4))
    assert (stats()["a"].H_held_out, stats()["a"].tokens_held_out) == (None, 0)
