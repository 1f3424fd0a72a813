"""A folder that `trinity lower` made: a module, its parameters, and all that is needed to evaluate
it where the checkpoint is not.
"""

import json
from pathlib import Path
from typing import Any

from trinity.harness.accuracy import suites
from trinity.harness.checkpoints.checkpoint import ON_PURPOSE, copy_companions
from trinity.harness.models.folders import CONFIG, LOWER_AGAIN, LOWERED, MODULE, lowered_facts
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.modules.module_stages import PARAMETERS, IreeEngine, Subject
from trinity.harness.records.measurement import Measurement
from trinity.harness.runs.requests import Evaluation
from trinity.harness.store import sums
from trinity.harness.store.stages import write_json
from trinity.harness.terminal.progress import Reporter
from trinity.lowering.targets import targets
from trinity.methods.errors import RecordError

NOT_COMPARED = "logits_not_compared_with_torch"


def write(
    place: Path,
    subject: Subject,
    target: str,
    vocabulary: int,
    logit_errors: dict[str, float] | None,
) -> None:
    """What goes beside a module: configuration, tokenizer, and where it is from.

    logit_errors: how far its logits are from torch's; None if it does not run where it was made
    """
    folder = subject.checkpoint.folder
    copy_companions(folder, place)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config.pop("quantization_config", None)  # these weights are in the module's storage
    write_json(place / CONFIG, config)
    facts = {
        "version": 1,
        "target": target,
        "checkpoint": {"name": subject.name, "sha256": subject.fingerprint},
        "vocabulary": vocabulary,
        "logit_errors": logit_errors,
    }
    write_json(place / LOWERED, facts)


def evaluate(asked: Evaluation, reporter: Reporter) -> list[Measurement]:
    """Accuracy suites on a module; nothing of it is kept in the store."""
    # Imported here: it loads the runtime, after what can be wrong without it.
    from trinity.lowering.module.invoke import CompiledModel

    folder = Path(asked.model.id)
    if damage := sums.damage(folder):  # before it is loaded: a module is code
        raise RecordError(f"{folder}: is damaged: {damage}. {LOWER_AGAIN} {ON_PURPOSE}")
    facts = lowered_facts(folder)
    compiled = CompiledModel(folder, folder / PARAMETERS, targets.get(facts["target"]))
    engine = IreeEngine(compiled, compiled.path, facts["vocabulary"])
    tokenizer = tokenizer_of(folder)
    noted: dict[str, Any] = {} if facts["logit_errors"] else {NOT_COMPARED: True}
    if noted:
        reporter.say(
            f"{folder}: {MODULE} was never compared with torch: it was made where it does not run"
        )
    found: list[Measurement] = []
    for suite in asked.suites.suites:
        bounded = suites.bounded(suite, engine.max_length)
        note = noted | suites.bounded_from(suite, bounded).details()
        sizes = f" in windows of {bounded.seqlen} tokens, all that its module reads"
        reporter.say(f"{folder.name}: {suite.suite}{sizes if bounded != suite else ''}")
        found += [
            m.model_copy(update={"details": {**m.details, **note}})
            for m in suites.run(bounded, engine, tokenizer)
        ]
    return found
