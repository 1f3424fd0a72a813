"""What a suite reads: whether it is here, whether it can be had, and what identifies it."""

from dataclasses import dataclass

from trinity.harness.accuracy import task_data
from trinity.harness.texts import corpora


@dataclass(frozen=True)
class SuiteData:
    """texts: corpus and split   tasks: by lm-eval's names"""

    texts: tuple[tuple[str, str], ...] = ()
    tasks: tuple[str, ...] = ()

    def at_hand(self) -> str | None:
        """None if all of it is on this machine, else what is missing."""
        reasons = [corpora.at_hand(*text) for text in self.texts]
        reasons += [task_data.at_hand(task) for task in self.tasks]
        return "; ".join(filter(None, reasons)) or None

    def obtainable(self) -> bool:
        """Whether all of it will be found: here, or on a hub that answers."""
        texts = all(corpora.obtainable(*text) for text in self.texts)
        return texts and all(map(task_data.obtainable, self.tasks))

    def fingerprint(self) -> dict[str, str]:
        """Of each text or task: a hash of what it says, or the commit of the hub's data set."""
        texts = {corpus: corpora.load(corpus, split).sha256 for corpus, split in self.texts}
        return texts | {task: _task_fingerprint(task) for task in self.tasks}


def _task_fingerprint(task: str) -> str:
    found = task_data.source(task)
    if not found:
        # Imported here: it imports lm_eval, which takes seconds.
        from trinity.harness.accuracy import task_definitions

        found = task_definitions.source(task)
    return str(found.get("sha256") or found["commit"])
