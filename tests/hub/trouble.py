"""What may go wrong between a hub and who asks it."""

import re
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """What may go wrong with a request."""

    RATE_LIMIT = "429 with Retry-After"
    UNAVAILABLE = "503"
    RESET = "the connection is reset"
    TRUNCATED = "half of the bytes, then the connection closes"
    CORRUPT = "one byte is another"
    PROXY = "a web page with status 200, as from a portal that wants a log-in"


@dataclass
class Trouble:
    """A fault of the requests that a pattern matches, the next `times` of them."""

    fault: Fault
    pattern: re.Pattern[str]
    times: int
    seconds: float
