"""Which cluster does the parts of runs: read from options, before anything is loaded."""

from dataclasses import dataclass
from typing import Literal

from trinity.methods.errors import ConfigError


@dataclass(frozen=True)
class Cluster:
    """named_by: the address of a Ray cluster, or options of SLURM's jobs"""

    kind: Literal["ray", "slurm"]
    named_by: str

    @staticmethod
    def named(ray: str | None, slurm: str | None) -> "Cluster | None":
        """That of --ray or --slurm; None for this machine.  ConfigError where both are given."""
        if ray is not None and slurm is not None:
            msg = "--ray and --slurm: a sweep runs on one cluster. Give one of them."
            raise ConfigError(msg)
        if ray is not None:
            return Cluster("ray", ray)
        return None if slurm is None else Cluster("slurm", slurm)
