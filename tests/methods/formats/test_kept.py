import pytest
import torch

from trinity.methods.formats import kept
from trinity.methods.formats.kept import kept_of


@pytest.mark.parametrize("shape", [(5, 8), (5, 2, 4), (1, 7), (0, 4), (3, 0)])
def test_it_is_what_the_mask_keeps_in_order(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_AT_ONCE", 16)  # two rows of eight
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    for mask in (values % 3 == 1, values < 0, values >= 0):
        assert torch.equal(kept_of(values, mask), values[mask])


def test_a_view_that_repeats_its_rows_is_read_as_it_is() -> None:
    places, mask = torch.arange(4).expand(3, 2, 4), torch.rand(3, 2, 4) < 0.5
    assert torch.equal(kept_of(places, mask), places[mask])
