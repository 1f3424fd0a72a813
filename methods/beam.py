"""BEAM: tune each compressed block towards the original one (Paramathic/beam, 2025).

After compression of any kind, the parameters of one block are trained so that its output is the
original block's.  The mathematics is methods/training/beam.py.

Differs from the published code:
- The best of the start and every epoch's end is kept; `keep: last` is the code's.
- Norms and biases stay as they are; the code trains them too.
- Scales stay, codes move.  The code takes new AbsMax scales at the end.
- Weights are float32 while they are trained, not bfloat16.
- Every block is tuned; the offline mode of the code reaches those of the last GPU alone.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from trinity.methods.contract import BlockTask, MethodConfig, Reported, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.training.beam import Keep, TunedBlock, Zeros, tune


class BeamConfig(MethodConfig):
    """Defaults are the code's but for `keep`.

    learning_rates: each is tried   trial: sequences of a trial   epochs: passes over the sequences
    keep: `best` never raises the error, `last` is the code's
    zeros: which stay 0, `all` is the code's; `pattern`: those of the stored mask, or dense weights
    """

    learning_rates: tuple[PositiveFloat, ...] = Field((1e-3, 5e-4, 1e-4, 5e-5, 1e-6), min_length=1)
    trial: PositiveInt = 32
    epochs: PositiveInt = 3
    keep: Keep = "best"
    zeros: Zeros = "all"


class _Beam:
    name = "beam"
    paper = "github.com/Paramathic/beam"
    config = BeamConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: BeamConfig) -> str | None:
        return None

    def compress_block(self, task: BlockTask, config: BeamConfig) -> Mapping[str, Reported]:
        if not task.inputs:
            msg = "beam: has no text to tune on; the recipe has no calibration data."
            raise ConfigError(msg)
        with torch.no_grad():
            targets = [task.forward(task.weights, x) for x in task.inputs]
        block = TunedBlock(task.current, task.inputs, targets, task.forward, config.zeros)
        found = tune(block, config.learning_rates, config.trial, config.epochs, config.keep)
        told = {
            "learning_rate": found.rate,
            "error_before": found.before,
            "error_after": found.after,
            "epoch_kept": found.epoch,
        }
        return {name: Reported(linear.stored(), told) for name, linear in block.linears.items()}


BEAM = _Beam()
