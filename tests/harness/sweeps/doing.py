"""What processes do in tests of who starts them."""

import os
import signal
import time
from pathlib import Path

from trinity.harness.sweeps.schedule import Places
from trinity.harness.sweeps.worker import Outcome, Work

WAIT_S = 20.0


def meet(work: Work) -> Outcome:
    """Wait for another that does the same: only two at once come to an end."""
    (work.folder / f"here-{os.getpid()}").touch()
    until = time.monotonic() + WAIT_S
    while len(list(work.folder.glob("here-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    return Outcome(0.0)


def note(work: Work) -> Outcome:
    """Write down which process did it, and that it was alone."""
    mine = work.folder / f"at-work-{os.getpid()}"
    mine.touch()
    time.sleep(0.05)
    others = len(list(work.folder.glob("at-work-*"))) - 1
    mine.unlink()
    return Outcome(float(os.getpid()), place=str(others))


def die(work: Work) -> Outcome:
    """As the system ends a process for which there is no memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(0.0)


def hang(work: Work) -> Outcome:
    """Work for ever, and say that it has begun."""
    _begun(work.folder)
    while True:
        time.sleep(1)


def hang_and_listen_to_nobody(work: Work) -> Outcome:
    """As C code that Python cannot interrupt."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hang(work)


def _begun(folder: Path) -> None:
    (folder / "begun.new").write_text(str(os.getpid()), encoding="utf-8")
    (folder / "begun.new").rename(folder / "begun")


def count(work: Work) -> Outcome:
    """Take a while, and leave a file for every time that it is begun."""
    (work.folder / f"{work.recipe.name}-{os.getpid()}-{time.time_ns()}").touch()
    time.sleep(1.5)
    return Outcome(1.5)


def whose(work: Work) -> Outcome:
    """How many processors of a Ray cluster are its own."""
    import ray

    processors = ray.get_runtime_context().get_assigned_resources()["CPU"]
    return Outcome(0.0, place=str(int(processors)))


def fail(work: Work) -> Outcome:
    """Raise an error that is nobody's but its own."""
    msg = "on purpose"
    raise ValueError(msg)


def kept(work: Work) -> Outcome:
    """Leave a file."""
    (work.folder / f"kept-{work.recipe.name}").touch()
    return Outcome(0.0)


def hang_once(work: Work) -> Outcome:
    """Of all parts, the first try of the first hangs, and says of which job of SLURM it is."""
    if work.recipe.name == "p0":
        try:
            (work.folder / "hung").mkdir()
        except FileExistsError:
            return Outcome(0.0)
        (work.folder / "hangs.new").write_text(os.environ["SLURM_JOB_ID"], encoding="utf-8")
        (work.folder / "hangs.new").rename(work.folder / "hangs")
        time.sleep(600)
    return Outcome(0.0)


def kind(places: Places) -> str:
    """Every machine is of it."""
    return "one processor"
