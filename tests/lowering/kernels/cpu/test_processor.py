"""What is asked of the system, on any machine."""

import pytest

from trinity.lowering.kernels.cpu import processor


def test_tiles_are_asked_for_only_where_the_processor_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class System:
        """In the place of the C library: grants nothing."""

        def syscall(self, *numbers: int) -> int:
            asked.append(numbers)
            return -1

    monkeypatch.setattr(processor.ctypes, "CDLL", lambda _: System())
    for features in (frozenset[str](), frozenset({"amx_tile"}), processor.TILE_FEATURES):
        monkeypatch.setattr(processor, "features", lambda found=features: found)
        assert not processor.may_use_tiles.__wrapped__()
    assert asked == [(158, 0x1023, 18)]


def test_features_are_those_of_linux_or_none() -> None:
    assert isinstance(processor.features(), frozenset)
