"""Slowdowns that tests plant: engines whose every call takes so many seconds of a clock of ours."""

import time

import numpy as np
from torch import Tensor

from trinity.harness.engines.engine import DecodeSession


class Clock:
    """The real one, and what is added to it: what a call takes beside the seconds is noise."""

    def __init__(self) -> None:
        self.real, self.added = time.perf_counter, 0.0

    def __call__(self) -> float:
        return self.real() + self.added


class Timed:
    """The wrapper around an engine's kernels: each of their calls takes so many seconds."""

    def __init__(self, session: DecodeSession, clock: Clock, seconds: float, seed: int) -> None:
        self.session, self.clock, self.seconds = session, clock, seconds
        self.noise = np.random.default_rng(seed)

    def prefill(self, ids: Tensor) -> Tensor:
        return self.session.prefill(ids)

    def step(self, tokens: Tensor) -> Tensor:
        self.clock.added += self.seconds * float(np.exp(self.noise.normal(0, 0.01)))
        return self.session.step(tokens)
