"""Parts as jobs of SLURM, by a stand-in of its commands: no cluster is here."""

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults import processes
from tests.harness.sweeps import doing, slurm_stand_in, test_sweeping
from trinity.harness.recipes import recipe, sweep
from trinity.harness.store.stages import StageStore
from trinity.harness.sweeps import graph, plan, schedule
from trinity.harness.sweeps.graph import Part
from trinity.harness.sweeps.schedule import Done, Needs, Places
from trinity.harness.sweeps.worker import Outcome
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, MachineError

pytest.importorskip("submitit", reason="missing: the package submitit")

from trinity.harness.sweeps import slurm_pool
from trinity.harness.sweeps.slurm_pool import SlurmPool

OPTIONS = "timeout_min=30,partition=small"


class Silent:
    def begun(self, part: Part) -> None: ...

    def ended(self, part: Part, outcome: Outcome) -> None: ...


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path) -> Iterator[Path]:
    """The folder of jobs, with SLURM's commands on the PATH."""
    programs, states = slurm_stand_in.commands(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(slurm_pool, "POLL_S", 0.05)
    yield states
    _wait_for(lambda: not any(_state(job) == "RUNNING" for job in states.iterdir()))


def _places(folder: Path) -> Places:
    for name in ("store", "out"):
        (folder / name).mkdir(exist_ok=True)
    return Places(folder, folder / "store", folder / "out")


def _parts(count: int) -> dict[str, Part]:
    named = [recipe.parse({"name": f"p{n}", "model": {"id": "m"}}, "test") for n in range(count)]
    return {of.name: Part(of.name, "compress", of, frozenset(), ("run",)) for of in named}


def _done(pool: SlurmPool, parts: dict[str, Part], **needs: Needs) -> Done:
    asked = {key: needs.get(key, Needs(10**9)) for key in parts}
    return schedule.run(parts, asked, pool, pool.places, Silent(), {})


def _batches(states: Path) -> list[str]:
    return [(job / "batch").read_text(encoding="utf-8") for job in sorted(states.iterdir())]


def test_records_and_stages_are_those_of_runs_one_by_one(
    states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = test_sweeping._place(tmp_path / "one-by-one")
    place = test_sweeping._place(tmp_path / "sweep")
    processes.whole(one_by_one, test_sweeping._one_by_one, one_by_one)
    monkeypatch.setenv("TRINITY_DATA_DIR", str(place / "data"))
    store = StageStore(place / "store")
    found = graph.of_runs(sweep.read(place / "sweep.yaml"))
    planned = plan.of_graph(found, place / "results", store, Reporter(quiet=True))
    places = Places(Path.cwd(), store.root, place / "results")
    with SlurmPool(f"{OPTIONS},at_once=2", 1, places) as pool:
        done = schedule.run(found, planned.needs(), pool, places, Silent(), planned.refused)
    assert not done.failures
    left = test_sweeping._left(place)
    assert {n: h for n, h in left.items() if "store/slurm" not in n} == test_sweeping._left(
        one_by_one
    )
    assert list((place / "store" / "slurm").glob("*.pkl")) == []


def test_a_batch_file_says_what_the_part_takes_and_what_the_user_asked_for(
    states: Path, tmp_path: Path
) -> None:
    with SlurmPool(
        f"{OPTIONS},gpus_per_node=1", 3, _places(tmp_path), do=doing.kept, kind_of=doing.kind
    ) as pool:
        _done(pool, _parts(2), p1=Needs(10**9, is_alone=True))
    plain, alone = _batches(states)
    for line in ("--partition=small", "--time=30", "--cpus-per-task=3", "--gpus-per-node=1"):
        assert line in plain
        assert line in alone
    assert re.search(r"--mem=1097MB", plain)  # 1 GB, and what a plan may be wrong by
    assert "--exclusive" not in plain
    assert "--exclusive" in alone
    assert "--mem=0" in alone


def test_a_part_whose_machine_is_gone_is_done_again_and_others_are_not(
    states: Path, tmp_path: Path
) -> None:
    with SlurmPool(OPTIONS, 1, _places(tmp_path), do=doing.hang_once, kind_of=doing.kind) as pool:
        lose = partial(_lose_the_hanging, states, tmp_path)
        done = _meanwhile(partial(_done, pool, _parts(2)), lose)
    assert not done.failures
    assert len(list(states.iterdir())) == 3


def test_a_job_that_slurm_ends_is_told_with_its_state(states: Path, tmp_path: Path) -> None:
    with SlurmPool(OPTIONS, 1, _places(tmp_path), do=doing.die, kind_of=doing.kind) as pool:
        done = _done(pool, _parts(1))
    assert "SLURM ended its job" in done.failures["p0"].reason
    assert done.failures["p0"].exit_code == MachineError.exit_code


def test_a_job_that_slurm_does_not_take_is_told_in_its_words(states: Path, tmp_path: Path) -> None:
    refuses = "#!/bin/bash\necho 'sbatch: error: invalid partition specified: small' >&2; exit 1\n"
    (tmp_path / "slurm" / "bin" / "sbatch").write_text(refuses, encoding="utf-8")
    pool = SlurmPool(OPTIONS, 1, _places(tmp_path), do=doing.kept, kind_of=doing.kind)
    with pool, pytest.raises(MachineError, match=r"SLURM does not take .*invalid partition"):
        pool.start(_work(pool, tmp_path), Needs(0))


def test_a_failing_part_is_told_by_its_own_words(states: Path, tmp_path: Path) -> None:
    with SlurmPool(OPTIONS, 1, _places(tmp_path), do=doing.fail, kind_of=doing.kind) as pool:
        done = _done(pool, _parts(1))
    assert "on purpose" in done.failures["p0"].reason


def test_machines_of_several_kinds_are_refused_with_what_differs(
    states: Path, tmp_path: Path
) -> None:
    with SlurmPool(OPTIONS, 1, _places(tmp_path), do=doing.kept, kind_of=doing.kind) as pool:
        pool._kind = "another processor"
        done = _done(pool, _parts(1))
    assert "the machines of SLURM differ (another processor; " in done.failures["p0"].reason
    assert not list(tmp_path.glob("kept-*"))  # nothing was done there


def test_what_runs_at_the_end_is_cancelled(states: Path, tmp_path: Path) -> None:
    with SlurmPool(OPTIONS, 1, _places(tmp_path), do=doing.hang, kind_of=doing.kind) as pool:
        pool.start(_work(pool, tmp_path), Needs(0))
        _wait_for(lambda: (tmp_path / "begun").exists())
    assert _state(states / "1") == "CANCELLED"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("timeout_min=9,at_once=many", "at_once is 'many', and must be a number of jobs"),
        ("timeout_min=9,at_once=0", "at_once is '0'"),
        ("partition=small", "says no timeout_min"),
        ("timeout_min", "'timeout_min' is no KEY=VALUE"),
        ("timeout_min=5,colour=red", "colour"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: str, said: str, states: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        SlurmPool(options, 1, _places(tmp_path))


def test_where_there_is_no_slurm_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="there is no `srun` here"):
        SlurmPool(OPTIONS, 1, _places(tmp_path))


def test_a_job_at_its_time_limit_asks_for_the_same_again(tmp_path: Path) -> None:
    asked = slurm_pool.Doing(doing.kept, _work(None, tmp_path), _places(tmp_path), doing.kind, None)
    again = asked.checkpoint()
    assert again.function is asked
    assert (again.args, again.kwargs) == ((), {})


def _work(pool: SlurmPool | None, folder: Path) -> Any:
    of = recipe.parse({"name": "p", "model": {"id": "m"}}, "test")
    return schedule.Work("compress", of, folder, folder / "store", folder / "out", {})


def _state(job: Path) -> str:
    return (job / "state").read_text(encoding="utf-8").strip()


def _wait_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def _meanwhile(call: Callable[[], Done], other: Callable[[], None]) -> Done:
    with ThreadPoolExecutor(1) as threads:
        beside = threads.submit(other)
        done = call()
        beside.result()
    return done


def _lose_the_hanging(states: Path, folder: Path) -> None:
    _wait_for(lambda: (folder / "hangs").exists())
    slurm_stand_in.lose(states, (folder / "hangs").read_text(encoding="utf-8"))
