"""Parts on a real Ray cluster: a head without processors, and two machines, all of them here."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import processes
from tests.harness.sweeps import doing, test_sweeping
from trinity.harness.recipes import recipe, sweep
from trinity.harness.store.stages import StageStore
from trinity.harness.sweeps import graph, plan, schedule
from trinity.harness.sweeps.graph import Part
from trinity.harness.sweeps.schedule import Done, Needs, Places
from trinity.harness.sweeps.worker import Outcome
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError

pytest.importorskip("ray", reason="missing: the package ray (tox -e ray installs it)")

from ray.cluster_utils import Cluster

from trinity.harness.sweeps.ray_pool import RayPool

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are many


class Silent:
    def begun(self, part: Part) -> None: ...

    def ended(self, part: Part, outcome: Outcome) -> None: ...


@pytest.fixture(scope="module")
def cluster(project_root: Path) -> Iterator[Cluster]:
    """One for all tests: to start it takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        # Functions of the tests are found by their module's name there too.
        patch.setenv("PYTHONPATH", str(project_root))
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            found.add_node(num_cpus=1)
        found.wait_for_nodes()
        yield found
        found.shutdown()


def _parts(count: int) -> dict[str, Part]:
    named = [recipe.parse({"name": f"p{n}", "model": {"id": "m"}}, "test") for n in range(count)]
    return {of.name: Part(of.name, "compress", of, frozenset(), ("run",)) for of in named}


def test_records_and_stages_are_those_of_runs_one_by_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = test_sweeping._place(tmp_path / "one-by-one")
    place = test_sweeping._place(tmp_path / "sweep")
    processes.whole(one_by_one, test_sweeping._one_by_one, one_by_one)
    monkeypatch.setenv("TRINITY_DATA_DIR", str(place / "data"))
    store = StageStore(place / "store")
    found = graph.of_runs(sweep.read(place / "sweep.yaml"))
    planned = plan.of_graph(found, place / "results", store, Reporter(quiet=True))
    places = Places(Path.cwd(), store.root, place / "results")
    with RayPool(cluster.address, threads=1) as pool:
        assert pool.at_once == 2
        pool.check(places)
        done = schedule.run(found, planned.needs(), pool, places, Silent(), planned.refused)
    assert not done.failures
    assert test_sweeping._left(place) == test_sweeping._left(one_by_one)


def test_a_machine_that_is_lost_costs_the_parts_that_it_was_at(
    cluster: Cluster, tmp_path: Path
) -> None:
    parts = _parts(6)
    needs = {key: Needs(0) for key in parts}
    places = Places(tmp_path, tmp_path / "store", tmp_path / "out")
    third = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    class LosesOne(Silent):
        lost = False

        def ended(self, part: Part, outcome: Outcome) -> None:
            if not self.lost:
                self.lost = True
                cluster.remove_node(third, allow_graceful=False)

    with RayPool(cluster.address, threads=1, do=doing.count) as pool:
        done: Done = schedule.run(parts, needs, pool, places, LosesOne(), {})
    assert not done.failures
    assert set(done.outcomes) == set(parts)
    tried = {key: len(list(tmp_path.glob(f"{key}-*"))) for key in parts}
    assert set(tried.values()) <= {1, 2}
    assert sum(tried.values()) <= len(parts) + 1


def test_a_failing_part_is_told_by_its_own_words(cluster: Cluster, tmp_path: Path) -> None:
    parts = _parts(2)
    needs = {key: Needs(0) for key in parts}
    places = Places(tmp_path, tmp_path / "store", tmp_path / "out")
    with RayPool(cluster.address, threads=1, do=doing.fail) as pool:
        done = schedule.run(parts, needs, pool, places, Silent(), {})
    assert all("on purpose" in failure.reason for failure in done.failures.values())


def test_where_no_cluster_answers_the_address_is_named() -> None:
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"--ray 127.0.0.1:1: no Ray cluster answers there"):
        RayPool("127.0.0.1:1", threads=1)
    assert time.monotonic() - started < 30


def test_more_threads_than_any_machine_has_are_refused(cluster: Cluster) -> None:
    with pytest.raises(MachineError, match=r"the largest machine of the Ray cluster gives 1 proc"):
        RayPool(cluster.address, threads=3)


def test_what_is_timed_has_a_machine_to_itself(cluster: Cluster, tmp_path: Path) -> None:
    parts = _parts(4)
    needs = {key: Needs(0, is_alone=key == "p1") for key in parts}
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    places = Places(tmp_path, tmp_path / "store", tmp_path / "out")
    with RayPool(cluster.address, threads=1, do=doing.whose) as pool:
        done = schedule.run(parts, needs, pool, places, Silent(), {})
    assert done.outcomes["p1"].place == "2"  # processors that it has
    assert not done.failures
