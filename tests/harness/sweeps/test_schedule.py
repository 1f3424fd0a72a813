import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from trinity.harness.recipes import recipe
from trinity.harness.store.spent import Seconds
from trinity.harness.sweeps import schedule
from trinity.harness.sweeps.ended import Ended
from trinity.harness.sweeps.graph import Graph, Part
from trinity.harness.sweeps.schedule import Done, Needs, Places
from trinity.harness.sweeps.worker import Failure, Outcome, Work
from trinity.methods.errors import MachineError, TrinityError

HERE = Places(Path("/work"), Path("/store"), Path("/out"))


class Simulated:
    """Does parts in threads that take no time, some of them badly; notes what ran beside what."""

    def __init__(self, at_once: int, bad: tuple[str, ...] = (), seed: int = 0) -> None:
        self.at_once, self.bad, self.rng = at_once, bad, random.Random(seed)
        self.threads = ThreadPoolExecutor(at_once)
        self.running: dict[str, bool] = {}  # whether each is alone
        self.beside: list[set[str]] = []
        self.began: list[Work] = []

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.at_once and not any(self.running.values())

    def start(self, work: Work, needs: Needs) -> Future[Outcome] | None:
        name = work.recipe.name
        if needs.is_alone and self.running:
            return None
        self.began.append(work)
        self.running[name] = needs.is_alone
        self.beside.append(set(self.running))
        future = self.threads.submit(self._do, name, self.rng.uniform(0, 0.002))
        future.add_done_callback(lambda _: self.running.pop(name))
        return future

    def failure(self, error: BaseException) -> str | None:
        return "its machine is gone" if isinstance(error, ConnectionError) else None

    def _do(self, name: str, seconds: float) -> Outcome:
        time.sleep(seconds)
        if name in self.bad:
            return Outcome(1.0, failure=Failure("it broke", 2))
        if f"lost {name}" in self.bad:
            raise ConnectionError
        return Outcome(1.0, {"compress": Seconds(1.0, 2.0)}, place=f"{name}.json")


class Watching:
    def __init__(self) -> None:
        self.events: list[str] = []

    def begun(self, part: Part) -> None:
        self.events.append(f"begun {part.key}")

    def ended(self, part: Part, outcome: Outcome) -> None:
        self.events.append(f"ended {part.key}")

    def of(self, what: str) -> list[str]:
        return [event.split()[1] for event in self.events if event.startswith(what)]


def _graph(edges: dict[str, str], *, alone: str = "", of: str = "run") -> Graph:
    """Parts by one letter, with the letters that each needs; upper case is a record."""
    found = {}
    for key, needs in edges.items():
        named = recipe.parse({"name": key, "model": {"id": "m"}}, "test")
        kind = "bench" if key in alone else "record" if key.isupper() else "compress"
        found[key] = Part(key, kind, named, frozenset(needs), (of,))
    return found


def _run(
    graph: Graph, executor: Simulated, refused: dict[str, Failure] | None = None
) -> tuple[Done, Watching]:
    watching = Watching()
    needs = {key: Needs(0, part.is_alone) for key, part in graph.items()}
    with executor.threads:
        done = schedule.run(graph, needs, executor, HERE, watching, refused or {})
    assert not executor.running
    return done, watching


@pytest.mark.parametrize("at_once", [1, 3])
def test_every_part_is_done_once_and_after_what_it_needs(at_once: int) -> None:
    rng = random.Random(at_once)
    letters = [chr(97 + i) for i in range(20)]
    edges = {k: "".join(rng.sample(letters[:i], min(i, 2))) for i, k in enumerate(letters)}
    graph = _graph(edges)
    done, watching = _run(graph, Simulated(at_once, seed=at_once))
    assert sorted(watching.of("ended")) == letters
    assert not done.left
    before = watching.events.index
    for key, part in graph.items():
        assert all(before(f"ended {need}") < before(f"begun {key}") for need in part.needs)


def test_one_at_a_time_a_run_is_finished_before_the_next_begins() -> None:
    edges = {"a": "", "b": "a", "R": "b", "c": "", "d": "c", "S": "d"}
    done, watching = _run(_graph(edges), Simulated(1))
    assert watching.of("begun") == list(edges)
    assert list(done.outcomes) == list(edges)


def test_what_follows_a_part_that_ended_meanwhile_comes_before_another_run() -> None:
    class Instant(Simulated):
        def start(self, work: Work, needs: Needs) -> Future[Outcome] | None:
            future = super().start(work, needs)
            assert future is not None
            future.result()
            while self.running:  # its room is free before anybody has noticed
                time.sleep(0.001)
            return future

    edges = {"a": "", "b": "a", "R": "b", "c": "", "d": "c", "S": "d"}
    _, watching = _run(_graph(edges), Instant(1))
    assert watching.of("begun") == list(edges)


def test_a_failed_part_leaves_out_what_needs_it_and_no_other() -> None:
    edges = {"a": "", "b": "a", "c": "b", "R": "ac", "d": "", "S": "d", "T": "ad"}
    graph = _graph(edges)
    done, watching = _run(graph, Simulated(2, bad=("b",)))
    assert done.left == {"c": "b", "R": "b"}
    assert set(watching.of("ended")) == {"a", "b", "d", "S", "T"}
    assert list(done.failures) == ["b"]
    ended = Ended(graph, done)
    with pytest.raises(TrinityError, match=r"1 of 7 parts failed \(compress b on m\), and 1 runs"):
        ended.check()
    assert [row[2] for row in ended.grid().rows] == [
        "none: compress b on m failed",
        "S.json",
        "T.json",
    ]
    assert ended.lost(graph["S"].recipe) is None
    assert str(ended.lost(graph["R"].recipe)) == "it broke"


def test_what_cannot_be_done_is_known_beforehand_and_not_tried() -> None:
    graph = _graph({"a": "", "R": "a", "b": "", "S": "b"})
    refused = {"a": Failure("no memory", MachineError.exit_code)}
    done, watching = _run(graph, Simulated(2), refused)
    assert "a" not in watching.of("begun")
    assert done.left == {"R": "a"}
    with pytest.raises(MachineError, match="no memory"):
        Ended(graph, done).check()


def test_a_part_that_does_not_come_back_has_failed() -> None:
    done, _ = _run(_graph({"a": "", "b": "a", "c": ""}), Simulated(1, bad=("lost a",)))
    assert done.failures["a"].reason == "its machine is gone"
    assert done.left == {"b": "a"}


def test_what_is_timed_has_nothing_beside_it() -> None:
    edges = {"a": "", "b": "", "t": "a", "c": "", "u": "b", "d": ""}
    for seed in range(10):
        executor = Simulated(3, seed=seed)
        _run(_graph(edges, alone="tu"), executor)
        timed = [beside for beside in executor.beside if beside & {"t", "u"}]
        assert sorted(timed, key=sorted) == [{"t"}, {"u"}]


def test_a_record_is_told_what_the_runs_own_parts_took() -> None:
    graph = dict(_graph({"a": "", "b": "a", "R": "b"}, of="one"))
    graph |= _graph({"S": "a"}, of="two")
    executor = Simulated(1)
    _run(graph, executor)
    earlier = {work.recipe.name: work.earlier for work in executor.began}
    assert earlier["R"] == {"compress": Seconds(2.0, 4.0)}
    assert earlier["S"] == {}  # what it shares is the first's
