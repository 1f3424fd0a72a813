"""methods/quarot.py."""

import pytest
import torch

from trinity.methods.errors import ConfigError
from trinity.methods.formats.hadamard import hadamard, turned
from trinity.methods.quarot import QUAROT, QuarotConfig

# Powers of two, Paley's first and second construction, both doubled; widths of real models.
KNOWN = [1, 2, 4, 12, 20, 24, 28, 36, 44, 60, 64, 96, 104, 108, 576, 896, 960, 1536, 2560]
UNKNOWN = [3, 6, 22, 50, 92, 100, 116, 156, 172]


@pytest.mark.parametrize("n", KNOWN)
def test_a_hadamard_matrix_has_signs_alone_and_orthogonal_rows(n: int) -> None:
    H = hadamard(n)
    assert H is not None
    assert H.shape == (n, n)
    assert set(H.unique().tolist()) <= {1.0, -1.0}
    assert torch.equal(H @ H.T, n * torch.eye(n))  # integers, exact in float32


@pytest.mark.parametrize("n", UNKNOWN)
def test_a_width_without_a_known_matrix_is_refused_and_an_orthogonal_one_is_offered(n: int) -> None:
    problem = QUAROT.problem(n, QuarotConfig())
    assert problem == f"no Hadamard matrix of {n} rows is known here (use `kind: orthogonal`)"
    with pytest.raises(ConfigError, match="quarot: no Hadamard matrix"):
        QUAROT.rotation(n, QuarotConfig())
    assert QUAROT.problem(n, QuarotConfig(kind="orthogonal")) is None


@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
def test_lengths_stay_and_seeds_give_other_rotations(kind: str) -> None:
    made = [
        QUAROT.rotation(96, QuarotConfig.model_validate({"kind": kind, "seed": seed})).double()
        for seed in (0, 0, 1)
    ]
    x = torch.randn(10, 96, dtype=torch.float64)
    torch.testing.assert_close((x @ made[0]).norm(dim=1), x.norm(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=0.01)


@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
def test_what_was_in_one_channel_is_in_all(kind: str) -> None:
    """A channel a hundred times as large: nothing is more than a few times the mean after it."""
    x = torch.randn(50, 96)
    x[:, 5] *= 100
    Q = QUAROT.rotation(96, QuarotConfig.model_validate({"kind": kind}))
    before, after = (y.abs().amax(1) / y.square().mean(1).sqrt() for y in (x, x @ Q))
    assert float(before.mean()) > 8
    assert float(after.mean()) < 4


@pytest.mark.parametrize("n", [1, 2, 12, 36, 48, 576, 1536])
def test_a_product_in_rounds_is_that_with_the_matrix(n: int) -> None:
    """Oracle: the matrix itself, in float64."""
    x, H = torch.randn(3, 2 * n), hadamard(n)
    assert H is not None
    expected = torch.cat([part.double() @ H.double() / n**0.5 for part in x.split(n, dim=1)], dim=1)
    torch.testing.assert_close(turned(x, n).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(turned(x, n).norm(), x.norm(), rtol=1e-5)
