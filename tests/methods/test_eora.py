"""methods/eora.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact, inputs
from tests.methods.samples import random_mask
from trinity.methods import rtn
from trinity.methods.contract import LayerStats
from trinity.methods.eora import EORA, EoraConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight, Dense, Sparse
from trinity.methods.tensors import low_rank


def layer(out: int = 12, d_in: int = 24, tokens: int = 200) -> tuple[Tensor, Tensor, LayerStats]:
    W, X = torch.randn(out, d_in), inputs(tokens, d_in)
    return W, X, LayerStats(tokens=tokens, H=2 / tokens * X.T @ X)


def adapted(W: Tensor, current: CompressedWeight, stats: LayerStats, **options: Any) -> Adapted:
    config = EoraConfig.model_validate({"dtype": "float32", **options})
    made = EORA.compress(W, current, stats, config)
    assert isinstance(made, Adapted)
    return made


def outputs_error(D: np.ndarray[Any, Any], X: Tensor) -> float:
    return float(np.linalg.norm(exact(X) @ D.T))


@pytest.mark.parametrize("shape", [(12, 24), (24, 12)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_adapter_of_its_rank_leaves_less_at_the_outputs(
    rank: int, shape: tuple[int, int]
) -> None:
    """Oracle: the paper's steps by numpy in float64, and the singular values that must remain."""
    W, X, stats = layer(*shape)
    base = rtn.compress(W, rtn.RtnConfig(bits=2, group_size=4))
    made = adapted(W, base, stats, rank=rank)
    E = exact(W) - exact(base.dequantize())
    eigenvalues, Q = np.linalg.eigh(exact(X).T @ exact(X))
    projected = E @ Q * np.sqrt(eigenvalues)
    U, S, Vt = np.linalg.svd(projected, full_matrices=False)
    product = (U[:, :rank] * S[:rank]) @ Vt[:rank] @ np.linalg.inv(Q * np.sqrt(eigenvalues))
    np.testing.assert_allclose(exact(made.B @ made.A), product, atol=1e-3)
    left = outputs_error(E - exact(made.B @ made.A), X)
    assert left == pytest.approx(float(np.linalg.norm(S[rank:])), rel=1e-3)
    B, A = low_rank(torch.tensor(E), rank)
    assert left <= outputs_error(E - (B @ A).numpy(), X)


def test_full_rank_gives_the_original_weight_back() -> None:
    W, _, stats = layer()
    base = rtn.compress(W, rtn.RtnConfig(bits=2, group_size=4))
    found = adapted(W, base, stats).dequantize()  # 128 is more than there is
    torch.testing.assert_close(found, W, atol=1e-4, rtol=0)


def test_it_makes_up_for_pruning_too() -> None:
    W, X, stats = layer()
    current = Sparse(Dense(W), random_mask(12, 24, NM(2, 4)), NM(2, 4))
    errors = [
        outputs_error(exact(adapted(W, current, stats, rank=rank).dequantize() - W), X)
        for rank in (1, 4, 8, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2


def test_inputs_that_are_never_active_do_no_harm() -> None:
    W, X, _ = layer()
    X[:, :5] = 0
    stats = LayerStats(tokens=len(X), H=2 / len(X) * X.T @ X)
    base = rtn.compress(W, rtn.RtnConfig(bits=2, group_size=4))
    made = adapted(W, base, stats, rank=4)
    assert outputs_error(exact(made.dequantize() - W), X) < outputs_error(
        exact(base.dequantize() - W), X
    )


def test_a_second_adapter_is_refused() -> None:
    W, _, stats = layer()
    once = adapted(W, Dense(W / 2), stats, rank=2)
    with pytest.raises(ConfigError, match="eora: an earlier step already gave"):
        adapted(W, once, stats, rank=2)
