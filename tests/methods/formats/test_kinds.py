"""methods/formats/kinds.py: kinds of values by name, those of other packages included."""

from importlib.metadata import EntryPoint

import pytest
import torch

from tests.methods.samples import GridCase, random_quantized
from trinity.methods import plugins
from trinity.methods.errors import ConfigError, PluginError, RecordError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Floats,
    Quantized,
    Sparse,
    WeightFormat,
    kinds,
)


class Other(Dense):
    """A subclass, whose decode would be lost when it is stored."""


class Nameless:
    """No kind of values."""

    kind = "another"


@pytest.fixture
def _register(monkeypatch: pytest.MonkeyPatch) -> None:
    own = (EntryPoint("ternary", f"{__name__}:Nameless", kinds.GROUP),)
    monkeypatch.setattr(plugins, "installed", lambda group: own if group == kinds.GROUP else ())


def test_every_kind_calls_itself_as_the_table_does() -> None:
    for name, found in kinds.BUILT_IN.items():
        assert found.kind == name
        assert kinds.get(name) is found
    assert set(kinds.BUILT_IN) <= set(kinds.names())


def test_the_json_of_a_format_names_one_kind() -> None:
    assert kinds.read({"shape": [2, 3], "dtype": "float16"}) == Floats("float16")
    with pytest.raises(RecordError, match=r"expected one kind of .*grid.*, found none"):
        kinds.read({"shape": [2, 3]})
    with pytest.raises(RecordError, match=r"found \['dtype', 'grid'\]"):
        kinds.read({"dtype": "float16", "grid": {}})


def test_a_kind_that_nobody_registers_is_named_with_the_group_that_adds_kinds() -> None:
    with pytest.raises(RecordError, match=r"'ternary' is not registered.*trinity.formats"):
        WeightFormat.from_json({"shape": [2, 3], "ternary": {}})
    with pytest.raises(ConfigError, match=r"kind of values 'grids' is not registered.*mean grid"):
        kinds.get("grids")


@pytest.mark.usefixtures("_register")
def test_a_plugin_that_is_no_kind_of_its_name_is_broken() -> None:
    with pytest.raises(PluginError, match="is not a class whose `kind` is 'ternary'"):
        kinds.get("ternary")


def test_weights_are_values_of_known_kinds_masked_or_adapted_and_no_subclass() -> None:
    grid = random_quantized(4, 8, GridCase(4))
    mask = (torch.arange(8) % 4 < 2).repeat(4, 1)
    weights: list[CompressedWeight] = [Dense(torch.ones(4, 8)), grid, Sparse(grid, mask, NM(2, 4))]
    for weight in [*weights, Adapted(grid, torch.ones(4, 1), torch.ones(1, 8))]:
        assert kinds.is_weight(weight)
    other = Other(torch.ones(4, 8))
    for wrong in (other, torch.ones(4, 8), Quantized, None, "grid"):
        assert not kinds.is_weight(wrong)
