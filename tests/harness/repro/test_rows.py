from pathlib import Path

from trinity.harness.repro import cost, repro
from trinity.harness.repro.rows import Rows
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError


def test_rows_of_a_table_share_the_dense_model(tmp_path: Path) -> None:
    chosen = repro.choose("slim", repro.Selection(profile="smoke", rows="*-2of4"))
    planned = chosen.recipes("table1", chosen.models[0], chosen.profile.data[0])
    quiet = Reporter(quiet=True)
    rows = Rows(planned, tmp_path, StageStore(tmp_path / "store"), quiet, cost.Left({}))
    first, second = (rows._dense_of(recipe) for _, _, recipe in planned[:2])
    assert first is second is not None
    compared_with_nothing = planned[0][2].model_copy(update={"bench": None, "evaluate": None})
    assert rows._dense_of(compared_with_nothing) is None


def test_a_row_that_was_lost_as_a_part_of_a_sweep_is_not_tried_again(tmp_path: Path) -> None:
    chosen = repro.choose("slim", repro.Selection(profile="smoke", rows="*-2of4"))
    planned = chosen.recipes("table1", chosen.models[0], chosen.profile.data[0])
    quiet = Reporter(quiet=True)
    rows = Rows(planned, tmp_path, StageStore(tmp_path / "store"), quiet, cost.Left({}))
    rows.run(None, lambda _: MachineError("its machine is gone"))
    assert [row.reason for row in rows.failed] == ["its machine is gone"] * len(planned)
    assert not list(tmp_path.rglob("*.safetensors"))
