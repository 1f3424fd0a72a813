"""Whether machines would get the same numbers: what the parts of one record must not differ in."""

from trinity.harness.sweeps.schedule import Places


def kind_of(places: Places) -> str:
    """Of the machine where this runs: all that the numbers of a part depend on, besides it."""
    # Imported here: they load torch, whose variables are the cluster's.
    import torch

    from trinity.harness.records.environment import machine_name, numerics
    from trinity.harness.runs import run
    from trinity.harness.store import own_code, remote

    if remote.of_environment() is not None:  # then each machine has a store of its own on disk
        places.store.mkdir(parents=True, exist_ok=True)
    for folder in (places.folder, places.store):
        if not folder.is_dir():
            return f"one has no {folder}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = ", ".join(f"{name} {value}" for name, value in numerics(device).items())
    return f"{machine_name()}, {kind}, code {own_code.sha256(run)[:12]}"


def differ(cluster: str, kinds: set[str]) -> str:
    """What to say of machines of several kinds.  cluster: whose they are"""
    return (
        f"the machines of {cluster} differ ({'; '.join(sorted(kinds))}), and the parts of one "
        f"record must not. Keep to one kind of machine, on one shared file system with the same "
        f"version of this project."
    )
