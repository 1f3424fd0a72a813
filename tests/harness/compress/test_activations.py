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
