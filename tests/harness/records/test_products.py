from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from trinity.harness.records import products
from trinity.harness.records.products import OneDnn


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 70, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_is_what_it_is_in_float64(shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = random(*shape), random(7, 5), random(7) if biased else None
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad(), OneDnn():
        made = functional.linear(x, weight, bias=bias)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_module_and_a_transposed_weight_go_the_same_way() -> None:
    linear, x = nn.Linear(6, 4), random(9, 6)
    linear.weight = nn.Parameter(random(6, 4).t())
    exact = functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    with torch.inference_mode(), OneDnn():
        made = linear(x)
    torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradients_and_other_types_are_torchs_own() -> None:
    x, weight = random(3, 5).requires_grad_(), random(7, 5)
    with OneDnn():
        functional.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 5))
    double = random(3, 5, dtype=torch.float64)
    with torch.no_grad(), OneDnn():
        assert torch.equal(functional.linear(double, weight.double()), double @ weight.double().t())
        assert torch.equal(torch.mm(weight, x.detach().t()), weight @ x.detach().t())


@pytest.mark.parametrize(
    ("said", "capability", "library"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", "oneDNN"),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", "torch's own"),
        ("vendor_id\t: GenuineIntel\n", "AVX512", "torch's own"),
        ("processor\t: 0\n", "AVX512", "torch's own"),
        (None, "AVX512", "torch's own"),
    ],
)
def test_only_avx512_of_other_makers_is_left_to_onednn(
    said: str | None, capability: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if said is not None:
        info.write_text(said, encoding="utf-8")
    monkeypatch.setattr(products, "_INFO", info)
    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products.library.__wrapped__() == library
