"""How long SLiM's Table 1 would take on several GPUs: counted, not measured.

    python benchmarks/projection.py --gpus 8

Operations of every row of `trinity repro slim --profile paper --table table1` follow from the
models' shapes, the calibration text and the suites; the rates of a GPU are assumptions, and
options.  Rows, compression and evaluation together, are then handed to GPUs: the next to the first
that is free.  Seconds in the table are of one row.
"""

import argparse
import heapq
from dataclasses import dataclass

CALIBRATION = 128 * 2048  # tokens
TEXT = 300_000  # tokens of WikiText-2's test split, about
# Questions and tokens of one, its answers included: harness/accuracy/sizes.py.
TASKS = ((14_042, 84), (1_838, 59), (2_376, 46), (1_172, 54), (1_267, 45), (500, 26))
EVALUATED = TEXT + sum(questions * tokens for questions, tokens in TASKS)
PATTERNS = 2
# Rows by what their methods do beside statistics and reports: nothing more, a factor of X^T X with
# a sweep, a singular value decomposition.
PLAIN, SWEPT, DECOMPOSED = 1 + 3 * PATTERNS, 2, 5 * PATTERNS


@dataclass(frozen=True)
class Model:
    """hidden, inner, blocks, vocabulary: sizes   gated: whether an MLP has three matrices"""

    name: str
    hidden: int
    inner: int
    blocks: int
    vocabulary: int
    gated: bool = False

    @property
    def linears(self) -> list[tuple[int, int]]:
        """[out, in] of every matrix of a block."""
        wide, up = (self.inner, self.hidden), 2 if self.gated else 1
        return [(self.hidden, self.hidden)] * 4 + [wide] * up + [(self.hidden, self.inner)]

    @property
    def inputs(self) -> list[int]:
        """Sizes of the inputs that matrices of a block have, each once."""
        return [self.hidden, self.hidden, self.hidden, self.inner]

    @property
    def weights(self) -> int:
        """That a token is multiplied with, the head's too."""
        return self.blocks * self.in_block + self.vocabulary * self.hidden

    @property
    def in_block(self) -> int:
        """Weights of a block."""
        return sum(out * inputs for out, inputs in self.linears)


MODELS = (
    Model("OPT-125M", 768, 3072, 12, 50_272),
    Model("OPT-350M", 1024, 4096, 24, 50_272),
    Model("OPT-1.3B", 2048, 8192, 24, 50_272),
    Model("OPT-2.7B", 2560, 10_240, 32, 50_272),
    Model("OPT-6.7B", 4096, 16_384, 32, 50_272),
    Model("OPT-13B", 5120, 20_480, 40, 50_272),
    Model("LLaMA-2-7B", 4096, 11_008, 32, 32_000, gated=True),
    Model("LLaMA-2-13B", 5120, 13_824, 40, 32_000, gated=True),
)


@dataclass(frozen=True)
class Rates:
    """Operations a second: of a forward in 16 bits, of products in float32, of a decomposition."""

    forward: float
    float32: float
    svd: float


def statistics_s(model: Model, rates: Rates) -> float:
    """Two forwards of the blocks over the text, and X^T X of every input."""
    forwards = 4.0 * model.blocks * model.in_block * CALIBRATION
    squares = 2.0 * model.blocks * CALIBRATION * sum(size**2 for size in model.inputs)
    return forwards / rates.forward + squares / rates.float32


def reports_s(model: Model, rates: Rates) -> float:
    """The error of every layer: two products with X^T X."""
    return 4.0 * model.blocks * sum(o * i * i for o, i in model.linears) / rates.float32


def sweep_s(model: Model, rates: Rates) -> float:
    """A factor of X^T X for each matrix, and a sweep over its columns."""
    return model.blocks * sum(2.0 * o * i * i + i**3 for o, i in model.linears) / rates.float32


def decomposition_s(model: Model, rates: Rates) -> float:
    """Of every matrix, m >= n: 14 m n^2 + 8 n^3 (Golub and Van Loan, 5.4.5)."""
    sizes = [(max(shape), min(shape)) for shape in model.linears]
    return model.blocks * sum(14.0 * m * n * n + 8.0 * n**3 for m, n in sizes) / rates.svd


def evaluation_s(model: Model, rates: Rates) -> float:
    """A forward of the model over the text and all questions."""
    return 2.0 * model.weights * EVALUATED / rates.forward


def rows(model: Model, rates: Rates) -> list[tuple[float, float]]:
    """Seconds of compression and of evaluation of every row, the dense one first."""
    evaluated = evaluation_s(model, rates)
    plain = statistics_s(model, rates) + reports_s(model, rates)
    kinds = [0.0] * PLAIN + [sweep_s(model, rates)] * SWEPT
    kinds += [decomposition_s(model, rates)] * DECOMPOSED
    return [(0.0, evaluated)] + [(plain + more, evaluated) for more in kinds]


def makespan(pairs: list[tuple[float, float]], gpus: int) -> float:
    """Seconds until all rows are evaluated: each row, in turn, to the GPU that is free first."""
    free = [0.0] * gpus
    for compressed, evaluated in pairs:
        heapq.heapreplace(free, free[0] + compressed + evaluated)
    return max(free)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--forward", type=float, default=150e12, help="operations a second")
    parser.add_argument("--float32", type=float, default=40e12)
    parser.add_argument("--svd", type=float, default=0.5e12)
    asked = parser.parse_args()
    rates = Rates(asked.forward, asked.float32, asked.svd)
    print("| model | statistics | reports | sweep | decomposition | evaluation | all rows |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for model in MODELS:
        parts = (statistics_s, reports_s, sweep_s, decomposition_s, evaluation_s)
        seconds = [part(model, rates) for part in parts]
        cells = [f"{each:.0f} s" if each >= 1 else "< 1 s" for each in seconds]
        total = sum(map(sum, rows(model, rates)))
        print(f"| {' | '.join([model.name, *cells])} | {total / 3600:.2f} h |")
    pairs = [pair for model in reversed(MODELS) for pair in rows(model, rates)]
    one, several = sum(map(sum, pairs)), makespan(pairs, asked.gpus)
    hours = f"{one / 3600:.1f} h on one GPU, {several / 3600:.1f} h on {asked.gpus}"
    print(f"\n{len(pairs)} rows: {hours}")


if __name__ == "__main__":
    main()
