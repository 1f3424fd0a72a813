"""What is done before the walk: the stream is turned, steps plan, and gradients are taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trinity.harness.compress.gradients import Gradients
from trinity.harness.compress.plan import Plan
from trinity.harness.compress.planning import Planning
from trinity.harness.compress.rotation import Rotating
from trinity.harness.models.decoder import Decoder
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore
from trinity.methods.contract import OF_LOSS


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the walk starts from.

    plan: with the options that steps gave   inputs: what all its stages depend on
    gradients: the stage that has gradients of the loss, where a method asks for them
    """

    plan: Plan
    inputs: Mapping[str, Any]
    gradients: Path | None


def prepare(
    decoder: Decoder,
    plan: Plan,
    text: Tensor | None,
    store: StageStore,
    inputs: Mapping[str, Any],
    say: Callable[[str, int, int], None],
) -> Prepared:
    """Do what the plan wants done; each part is a stage of the store, and recipes share it.

    text: int64 [samples, seqlen], or None   inputs: what all stages depend on
    say: (what, parts that are done, of how many)
    """
    if plan.rotation is not None:
        code = own_code.sha256(Rotating, methods=[plan.rotation.method])
        inputs = {**inputs, "rotation": {**plan.rotation.describe(), "code": code}}
        Rotating(decoder, plan.rotation, text, store, inputs, plan.inputs).run()
    if plan.planners:
        own = {**inputs, "code": own_code.sha256(Planning, methods=plan.methods)}
        planning = Planning(decoder, text, store, own)
        plan = planning.run(plan, say)
    gradients, needs = None, plan.needs & OF_LOSS
    if needs:
        own = {**inputs, "code": own_code.sha256(Gradients)}
        taken = Gradients(decoder, text, store, own, needs)
        gradients = taken.run(partial(say, "gradients, blocks"))
    return Prepared(plan, inputs, gradients)
