"""methods/gear.py: each part against a definition in float64, and the sum of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import caches as oracle
from trinity.methods.gear import GEAR, GearConfig, filtered, low_rank


def config(**options: Any) -> GearConfig:
    return GearConfig.model_validate(options)


def skewed() -> tuple[Tensor, Tensor]:
    """Keys with channels far from zero, both with single large numbers: [2, 3, 64, 32]."""
    keys, values = torch.randn(2, 2, 3, 64, 32)
    keys[..., 3] += 20
    for x in (keys, values):
        x[0, 0, 5, 7] = 60
        x[1, 2, 9, 1] = -60
    return keys, values


def test_the_filter_keeps_the_ends_of_every_vector() -> None:
    X = torch.randn(4, 20).double()
    S, kept = filtered(X.float(), 2)
    for row, own, where in zip(X.tolist(), S.tolist(), kept.tolist(), strict=True):
        order = sorted(range(20), key=row.__getitem__)
        ends = {*order[:2], *order[-2:]}
        assert {i for i, is_kept in enumerate(where) if is_kept} == ends
        assert own == [oracle.half(row[i]) if i in ends else 0 for i in range(20)]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_low_rank_is_near_the_best_one(rank: int) -> None:
    """Truncated SVD is the best; power iteration finds it where its values fall off."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 32).double()).Q for n in (64, 32))
    R = U @ torch.diag(0.5 ** torch.arange(32).double()) @ V.T
    left, sizes, right = torch.linalg.svd(R)
    best = left[:, :rank] * sizes[:rank] @ right[:rank]
    found = low_rank(R.float(), rank, 8, 0).double()
    least = float((R - best).norm())
    assert least <= float((R - found).norm()) < 1.02 * least + 1e-3  # float16 factors
    assert int((torch.linalg.svdvals(found) > 1e-4).sum()) == rank


def test_a_matrix_of_the_rank_is_found_up_to_float16() -> None:
    R = torch.randn(64, 2) @ torch.randn(2, 32)
    off = (low_rank(R, 2, 3, 0) - R).norm() / R.norm()
    assert float(off) < 2**-9


def test_without_outliers_and_rank_keys_are_rounded_by_channel_and_values_by_position() -> None:
    keys, values = skewed()
    K, V = GEAR.rounded_cache(keys, values, config(bits=4, rank=0, outliers=0))
    expected = oracle.rounded(keys.mT, 4).mT, oracle.rounded(values, 4)
    for found, wanted in zip((K, V), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_part_takes_error_away(bits: int) -> None:
    keys, values = skewed()
    errors = []
    for options in ({"rank": 0, "outliers": 0}, {"rank": 0}, {}):
        found = GEAR.rounded_cache(keys, values, config(bits=bits, **options))
        errors.append(
            sum(float((a - b).norm()) for a, b in zip(found, (keys, values), strict=True))
        )
    assert errors[0] > errors[1] > errors[2]


def test_outliers_come_back_as_float16_holds_them_and_leave_the_range_alone() -> None:
    keys, values = skewed()
    K, V = GEAR.rounded_cache(keys, values, config(rank=0))
    assert float(K[0, 0, 5, 7]) == 60
    assert float(V[0, 0, 5, 7]) == 60
    # The others of that channel are as near as if the outlier were none.
    plain = keys.clone()
    plain[0, 0, 5, 7] = 0
    other = GEAR.rounded_cache(plain, values, config(rank=0))[0]
    near, same = ((x[0, 0, :, 7] - keys[0, 0, :, 7]).abs().median() for x in (K, other))
    assert float(near) < 2 * float(same)


def test_heads_do_not_see_each_other_in_the_low_rank() -> None:
    keys, values = skewed()
    one = GEAR.rounded_cache(keys, values, config(outliers=0))
    alone = GEAR.rounded_cache(keys[:, :1], values[:, :1], config(outliers=0))
    for whole, part in zip(one, alone, strict=True):
        torch.testing.assert_close(whole[:, :1], part, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "options"), [(4, {}), (64, {"buffer": 4}), (32, {"rank": 32})])
def test_a_rank_that_is_no_low_one_is_refused(width: int, options: dict[str, int]) -> None:
    assert "is no low one" in str(GEAR.cache_problem(width, config(**options)))
    assert GEAR.cache_problem(64, config()) is None
