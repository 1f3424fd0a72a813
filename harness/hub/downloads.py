"""How far a download of the Hugging Face hub is, told to our reporter in megabytes."""

import math
from typing import Any

from trinity.harness.terminal.progress import Reporter

MEGABYTE = 10**6


def bars(name: str, size: int | None, reporter: Reporter) -> type:
    """A class that the library takes for tqdm's, which tells our reporter.

    size: bytes in all, if they are known before the first file is asked for
    """
    whole, done, told = [size or 0], [0], [-1]

    class Bar:
        def __init__(self, *_: object, **options: Any) -> None:
            # The library draws three bars: bytes that came, bytes that were written, files.
            self.counts = options.get("unit") == "B" and options.get("desc") != "Downloading bytes"
            self.total = options.get("total") or 0
            if self.counts and size is None:
                whole[0] = self.total
            self.n = 0
            self.format_dict: dict[str, Any] = {"rate": None}

        def update(self, count: float | None = 1) -> None:
            self.n += int(count or 0)
            if self.counts and whole[0]:
                done[0] += int(count or 0)
                total = math.ceil(whole[0] / MEGABYTE)
                now = total if done[0] >= whole[0] else done[0] // MEGABYTE
                if now != told[0]:
                    told[0] = now
                    reporter.step(name, now, total)

        def ignore(self, *_: object, **__: object) -> None:
            """What only a drawn bar needs."""

        close = refresh = set_description = set_description_str = set_postfix_str = ignore

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    return Bar
