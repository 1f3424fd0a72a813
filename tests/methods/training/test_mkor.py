import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trinity.methods.errors import ConfigError
from trinity.methods.training import mkor
from trinity.methods.training.mkor import Mkor, MkorOptions

UPDATES = ["exact", "paper", "code"]


def spd(d: int = 7) -> tuple[Tensor, Tensor]:
    A = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return A @ A.T + torch.eye(d, dtype=torch.float64), v


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False))


def options(update: str = "exact", **more: object) -> MkorOptions:
    return MkorOptions(**{"update": update, "interval": 2, **more})  # type: ignore[arg-type]


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def test_the_exact_update_is_the_dense_inverse() -> None:
    L, v = spd()
    dense = torch.linalg.inv(0.9 * L + 0.1 * torch.outer(v, v))
    torch.testing.assert_close(mkor.exact_update(torch.linalg.inv(L), v, 0.9), dense)


def test_the_codes_update_is_the_dense_inverse() -> None:
    P, v = spd()
    mixed = 0.95 * P + 0.05 * torch.eye(7, dtype=torch.float64)
    dense = torch.linalg.inv(torch.linalg.inv(mixed) + torch.outer(v, v))
    torch.testing.assert_close(mkor.code_update(P, v), dense)


def test_the_papers_update_is_positive_definite_and_not_the_inverse() -> None:
    L, v = spd()
    new = mkor.paper_update(torch.linalg.inv(L), v, 0.9)
    assert torch.linalg.eigvalsh(new).min() > 0
    assert not torch.allclose(new, torch.linalg.inv(0.9 * L + 0.1 * torch.outer(v, v)), rtol=0.01)


def test_a_zero_vector_moves_the_codes_factor_towards_the_identity() -> None:
    P, v = spd()
    eye = torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(mkor.code_update(P, 0 * v) - eye, 0.95 * (P - eye))


def test_a_preconditioned_gradient_keeps_its_norm() -> None:
    P, _ = spd()
    dW = torch.randn(7, 7, dtype=torch.float64)
    torch.testing.assert_close(mkor.precondition(P, dW, P).norm(), dW.norm())


def test_the_stabiliser_acts_only_above_its_limit() -> None:
    P, _ = spd()
    assert mkor.stabilise(P, 1000.0, 0.9) is P
    expected = 0.9 * P + 0.1 * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(mkor.stabilise(P, 1.5, 0.9), expected)


def test_identity_factors_are_the_base_optimizer() -> None:
    net, plain = model(), model()
    optimizer = Mkor(net, sgd(net), options())
    optimizer.first_order = False
    optimizer.steps = 1  # not due: the factors stay identities
    train(net, optimizer, range(1))
    train(plain, sgd(plain), range(1))
    torch.testing.assert_close(list(net.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resuming_gives_the_same_bytes(update: str, dtype: torch.dtype) -> None:
    net = model()
    optimizer = Mkor(net, sgd(net), options(update, factor_dtype=dtype))
    train(net, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    again = model()
    again.load_state_dict(copy.deepcopy(net.state_dict()))
    resumed = Mkor(again, sgd(again), options(update, factor_dtype=dtype))
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(net, optimizer, range(3, 8))
    train(again, resumed, range(3, 8))
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, (P_A, P_G) in optimizer.factors.items():
        assert P_A.dtype == dtype
        assert torch.linalg.eigvalsh(P_A.double()).min() > 0
        assert torch.equal(P_A, resumed.factors[name][0])
        assert torch.equal(P_G, resumed.factors[name][1])


def test_the_hybrid_switches_once_the_loss_stops_falling() -> None:
    net = model()
    optimizer = Mkor(net, sgd(net), options(switch_below=0.1, window=2))
    for loss in [4.0, 4.0, 2.0, 2.0]:
        optimizer.observe(loss)
    assert not optimizer.first_order
    for loss in [1.9, 1.9]:
        optimizer.observe(loss)
    assert optimizer.first_order


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="decay"):
        MkorOptions(decay=1.0)
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        Mkor(nn.LayerNorm(3), torch.optim.SGD([torch.zeros(1)]))


def one_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    net = model()
    optimizer = Mkor(net, sgd(net), options())
    for step in range(4):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x[4 * rank : 4 * rank + 4]).square().mean().backward()
        for parameter in net.parameters():
            torch.distributed.all_reduce(parameter.grad)
            assert parameter.grad is not None
            parameter.grad /= 2
        optimizer.step()
    torch.save(list(net.parameters()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_on_the_whole_batch(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    net = model()
    train(net, Mkor(net, sgd(net), options()), range(4))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, list(net.parameters()), rtol=1e-4, atol=1e-6)


def test_a_skipped_linear_is_the_base_optimizers_alone() -> None:
    ours, alone = model(), model()
    train(ours, Mkor(ours, sgd(ours), options(skip=("0",))), range(1))
    train(alone, sgd(alone), range(1))
    (first, _, last), (first_alone, _, last_alone) = ours, alone
    assert torch.equal(first.weight, first_alone.weight)
    assert not torch.equal(last.weight, last_alone.weight)


def test_a_model_without_a_linear_that_is_not_skipped_is_refused() -> None:
    net = model()
    with pytest.raises(ConfigError, match=r"mkor: no nn\.Linear .*all its 2 are skipped"):
        Mkor(net, sgd(net), options(skip=("*",)))
    with pytest.raises(ConfigError, match="it has none"):
        Mkor(nn.Tanh(), sgd(net))
