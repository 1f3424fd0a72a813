"""What `compress.tune` takes, counted before a run: work of training, and what it holds.

Counts follow methods/training/beam.py and methods/slim_tune.py: a training step is a forward and a
backward of one sequence, and rounds and moves every parameter.  Of other methods the same is
assumed, with the epochs that their options name.
"""

from dataclasses import dataclass

from trinity.harness.recipes.recipe import Recipe
from trinity.harness.runs.run_checks import tuning_text
from trinity.methods import registry
from trinity.methods.contract import BlockMethod

FLOAT = 4  # bytes
STEP_FORWARDS = 3  # a backward is twice the work of a forward
# Of a parameter in one step, numbers read and written: Adam's 7, gradients, rounding to what is
# stored, zeros that are held.
STEP_TRAFFIC = 30
# Of a block's weights in float32: parameter, gradient, Adam's two moments, the rounded weight and
# the difference to it, the start and the best so far.
COPIES = 8
# Of a linear's input and output, kept for the backward: the numbers, and in float32 where norms,
# activations and softmax compute.
KEPT = 2


@dataclass(frozen=True)
class Work:
    """Of tuning a model, however it is cut.

    by_block: whether blocks are tuned one by one   seqlen: tokens of a sequence
    forwards: of a sequence through every weight, a backward as two   steps: updates of parameters
    samples: sequences   trained: of them, once for every pass
    """

    by_block: bool
    seqlen: int
    forwards: int
    steps: int
    samples: int
    trained: int


def work(recipe: Recipe) -> Work | None:
    """Of a recipe; None if nothing is tuned."""
    spec, text = recipe.compress.tune, tuning_text(recipe)
    if spec is None or text is None:
        return None
    config, samples = registry.configure(spec.method, spec.options), text.samples
    epochs = int(getattr(config, "epochs", 1))
    rates = getattr(config, "learning_rates", ())
    trials = len(rates) * min(samples, int(getattr(config, "trial", 0))) if len(rates) > 1 else 0
    trained = epochs * samples + trials  # sequences
    if isinstance(registry.get(spec.method), BlockMethod):
        # The targets, the error before and after every epoch, and the next block's inputs.
        seen = samples * (3 + epochs)
        return Work(True, text.seqlen, STEP_FORWARDS * trained + seen, trained, samples, trained)
    batch = min(samples, int(getattr(config, "batch", 1)))
    steps = epochs * -(-samples // batch)
    return Work(False, text.seqlen, STEP_FORWARDS * trained, steps, samples, trained)


def seconds(of: Work, weights: int, trained: int, rate: float, bandwidth: float) -> float:
    """Of the clock.

    weights: that a token goes through   trained: parameters
    rate: operations a second of a forward   bandwidth: bytes a second
    """
    forwards = 2.0 * weights * of.seqlen * of.forwards / rate
    return forwards + of.steps * trained * FLOAT * STEP_TRAFFIC / bandwidth


def held(of: Work, linears: list[tuple[int, int]], width: int, itemsize: int) -> dict[str, int]:
    """What is in memory while a block is tuned, beside the block itself.

    linears: [out, in] of a block's   width: of hidden states   itemsize: of the model's type
    """
    numbers = sum(out * inputs for out, inputs in linears)
    sides = sum(out + inputs for out, inputs in linears)
    hidden = of.samples * of.seqlen * width * itemsize
    return {
        "what is trained": numbers * FLOAT * COPIES,
        "what is stored": numbers,
        "rounded weights in the model's type": numbers * itemsize if itemsize < FLOAT else 0,
        "inputs and targets": 2 * hidden,
        "what a backward needs": of.seqlen * sides * (itemsize + FLOAT) * KEPT,
    }
