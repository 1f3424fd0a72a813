"""What of a profile this machine can have: a GPU, models, the hub.  Asked before the first hour."""

import logging
from functools import cache

from trinity.harness.hub import data_sets
from trinity.harness.hub.failures import SILENT, Asked, Failure, Reason, failure_of
from trinity.harness.recipes.paper import Paper, Profile
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError, TrinityError

log = logging.getLogger(__name__)

PROBE = Asked("Salesforce/wikitext", kind="dataset")
PAPER, SMALL, EMBEDDED = "paper", "small", "embedded"


def has_gpu() -> bool:
    """Whether torch finds an NVIDIA GPU."""
    import torch  # here: a wrong paper or table is found without it

    return torch.cuda.is_available()


@cache
def hub_failure() -> Failure | None:
    """What is wrong with a small question to the Hugging Face hub; None if it is answered."""
    # Imported here: a run on local data never asks the hub.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().dataset_info(PROBE.repo, timeout=5)
    except (HTTPError, OSError, ValueError) as error:
        log.info("the Hugging Face hub: %s", error)
        return failure_of(error) or Failure(Reason.OTHER, f"{type(error).__name__}: {error}")
    return None


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached; False where HF_HUB_OFFLINE forbids asking.

    One that refuses a token answers: what it is asked for next says so.
    """
    if data_sets.hub_is_off():
        return False
    found = hub_failure()
    return found is None or found.reason not in SILENT


def default_profile(definition: Paper) -> str:
    """The profile for this machine.

    'paper' with a GPU, the paper's smallest models where the hub answers, else what PyPI has.
    """
    if has_gpu():
        return PAPER
    return SMALL if SMALL in definition.profiles and hub_answers() else EMBEDDED


def check_machine(profile: Profile) -> None:
    """MachineError if a profile needs a GPU and there is none."""
    if "gpu" in profile.needs and not has_gpu():
        msg = (
            f"this profile ({profile.summary}) needs an NVIDIA GPU, and torch finds none. "
            f"`--profile small` runs the paper's smallest models on a processor, where the paper "
            f"has some; `--profile embedded` needs no hub either."
        )
        raise MachineError(msg)


def is_of_hub(model: str) -> bool:
    """Whether a profile's model is the hub's, not a package's or random."""
    return ":" not in model


def refused(
    models: tuple[str, ...], store: StageStore, reporter: Reporter
) -> dict[str, TrinityError]:
    """The models that the hub would not give, and why; one small request each.

    The only error of several that say the hub is silent is raised: no model is to blame for it.
    """
    # Imported here: it loads torch, and a wrong paper or table is found without it.
    from trinity.harness.hub import repositories

    found: dict[str, TrinityError] = {}
    for model in models:
        if not is_of_hub(model):
            continue
        try:
            repositories.check(Asked(model), store, reporter)
        except TrinityError as error:
            found[model] = error
            if repositories.is_silent(error) and len(found) == len(models):
                raise
    return found
