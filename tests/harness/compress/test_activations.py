import pytest
import torch
from torch import Tensor, nn

from trinity.harness.compress.activations import OF_CLIPPED, EnoughError, collected, ended_early
from trinity.methods.contract import Statistic
from trinity.methods.errors import ConfigError


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


def _clipped(x: Tensor, count: int) -> Tensor:
    """Inputs of one sequence, `count` of them cut.  -> float64"""
    exact = x.double()
    limit = sorted(exact.abs().flatten().tolist())[-count]
    return exact.clamp(-limit, limit)


@pytest.mark.parametrize("divided", [False, True])
def test_inputs_are_clipped_a_sequence_at_a_time_before_transforms_scale_them(
    divided: bool,
) -> None:
    """Oracle: in float64, sorted.  Of 40 tokens and 10 inputs, the 4 largest are cut."""
    linear, made = nn.Linear(10, 2), torch.randn(5, 40, 10) * torch.logspace(-1, 1, 10)
    made[2] *= 10  # a limit of all sequences would be another one
    scale = torch.logspace(1, -1, 10) if divided else torch.ones(10)
    moved = {"a": scale} if divided else None
    given = made / scale
    with torch.no_grad(), collected({"a": linear}, [["a"]], OF_CLIPPED, moved) as stats:
        linear(given[:2])
        for sequence in given[2:]:
            linear(sequence[None])
    found = stats()["a"]
    expected = torch.stack([_clipped(x, 4) for x in made]) / scale
    assert found.x_norm_clipped is not None
    assert found.x_max_abs_clipped is not None
    assert found.X_mean_clipped is not None
    norm = expected.square().sum(1).mean(0).sqrt()
    torch.testing.assert_close(found.x_norm_clipped.double(), norm, rtol=1e-5, atol=1e-6)
    largest = expected.abs().amax((0, 1))
    torch.testing.assert_close(found.x_max_abs_clipped.double(), largest, rtol=1e-5, atol=1e-6)
    mean = found.X_mean_clipped.double()
    torch.testing.assert_close(mean, expected.mean(0), rtol=1e-5, atol=1e-5)


def test_a_mean_for_each_position_wants_sequences_of_one_length() -> None:
    linear, x = nn.Linear(4, 2), torch.randn(2, 5, 4)
    with torch.no_grad(), collected({"a": linear}, [["a"]], Statistic.X_MEAN_CLIPPED):
        linear(x[:1])
        with pytest.raises(ConfigError, match="a: reads 3 tokens of one sequence and 5 of another"):
            linear(x[1:, :3])


def test_nothing_is_held_out_unasked() -> None:
    linear = nn.Linear(4, 2)
    with torch.no_grad(), collected({"a": linear}, [["a"]], Statistic.HESSIAN) as stats:
        linear(torch.randn(9, 5, 4))
    assert (stats()["a"].H_held_out, stats()["a"].tokens_held_out) == (None, 0)
