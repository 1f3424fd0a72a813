"""SLURM's commands as scripts that run jobs on this machine at once: no queue, no limits, no nodes.

They read what submitit writes and say what it reads; whether SLURM itself would take it, only a
cluster shows.  A job's state is a file, which a test may write to say that its machine is gone.
"""

import os
from pathlib import Path

SCRIPTS = {
    "sbatch": """
id=$(($(ls $STATES | wc -l) + 1))
while ! mkdir $STATES/$id 2> /dev/null; do id=$((id + 1)); done
cp "$1" $STATES/$id/batch
run-job $id > /dev/null 2>&1 &
echo "Submitted batch job $id"
""",
    "run-job": """
export SLURM_JOB_ID=$1
echo RUNNING > $STATES/$1/state
set -m
bash $STATES/$1/batch &
echo $! > $STATES/$1/pid
if wait $!; then ended=COMPLETED; else ended=FAILED; fi
grep -q RUNNING $STATES/$1/state && echo $ended > $STATES/$1/state
""",
    # Its own options go before the command: --unbuffered, --output FILE, --error FILE.
    "srun": """
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
exec "$@"
""",
    "sacct": """
echo "JobID|State|NodeList"
for id in $(ls $STATES); do echo "$id|$(cat $STATES/$id/state)|here"; done
""",
    "scancel": """
echo CANCELLED > $STATES/$1/state
kill -- -$(cat $STATES/$1/pid)
sleep 0.2 # SLURM waits for half a minute, and submitit lets the first signal pass
kill -9 -- -$(cat $STATES/$1/pid) 2> /dev/null
""",
    "scontrol": """
echo REQUEUED > $STATES/$2/state
(while kill -0 $PPID; do sleep 0.05; done; run-job $2) > /dev/null 2>&1 &
""",
}


def commands(folder: Path) -> tuple[Path, Path]:
    """The folder of commands, to be the first of PATH, and that of jobs, each with its state."""
    programs, states = folder / "bin", folder / "states"
    programs.mkdir(parents=True)
    states.mkdir()
    for name, text in SCRIPTS.items():
        script = programs / name
        body = text.replace("$STATES", str(states))
        script.write_text(f"#!/bin/bash\n{body}", encoding="utf-8")
        script.chmod(0o755)
    return programs, states


def lose(states: Path, job: str) -> None:
    """A job's machine is gone."""
    (states / job / "state").write_text("NODE_FAIL\n", encoding="utf-8")
    os.killpg(int((states / job / "pid").read_text(encoding="utf-8")), 9)
