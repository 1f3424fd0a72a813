"""AQLM: a weight as a sum of vectors from learned tables (Egiazarian et al., arXiv:2401.06118).

Each group of g consecutive inputs of a row is a scale of the row times a sum of K vectors, one of
each table C_k of 2^B vectors.  Codes, tables and scales are sought that minimize the output's error

    || W X - W^ X ||^2 / out = tr((W^ - W) X X^T (W^ - W)^T) / out

1. Start: the scale is the row's norm, and the tables are k-means of what those before left.
2. Tables and scales: steps of Adam, codes held.
3. Codes: beam search over groups, and in each over its tables, the rest held.
2 and 3 are repeated while the error falls by more than `tolerance` of itself.  The paper's last
step, tuning a block with its codes held, is `methods/beam.py` after this one.

Differs from the paper and its code:
- Two tables of 256 vectors are the default, as fast kernels have them; the code's is one of 65,536.
- Groups and tables are searched in their order; the code draws an order for every search.
- H, which is 2 X X^T / tokens, stands for X X^T.
- What is kept is the best that a round began or ended with; the code keeps the last.
- No scale falls below a hundredth of what it was, and a row of zeros has scale 1.
- Tables and scales are rounded to `dtype` at the end.
"""

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Reported, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Sparse, VectorCoded
from trinity.methods.formats.vector_codebook import code_dtype, decoded, nearest_vectors
from trinity.methods.options import FloatName, cast
from trinity.methods.tensors import unquantized

_AT_ONCE = 1 << 24  # scores of a search
BITS_OF = {"float32": 32, "float16": 16, "bfloat16": 16}
LEAST_SCALE = 0.01  # of what it was at the start


class AqlmConfig(MethodConfig):
    """Defaults are the code's but for `codebooks`, `bits`, and the README's `tolerance`.

    codebooks: K   bits: B, of a code   group_size: g, inputs of a vector; must divide `in`
    kmeans_iterations: of each table at the start, at most
    steps: of Adam in a round   learning_rate: of these
    beam: how many sets of codes of a row the search keeps
    tolerance: share of the error by which a round must lower it for another to follow
    rounds: of both, at most
    seed: of the vectors that k-means starts at
    dtype: in which tables and scales are stored
    """

    codebooks: PositiveInt = 2
    bits: Literal[4, 8, 12, 16] = 8
    group_size: PositiveInt = 8
    kmeans_iterations: PositiveInt = 100
    steps: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-4
    beam: PositiveInt = 1
    tolerance: float = Field(0.01, ge=0, lt=1)
    rounds: NonNegativeInt = 1000
    seed: NonNegativeInt = 0
    dtype: FloatName = "float16"


def kmeans(x: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's steps from drawn points; a mean that nothing is nearest to stays.

    x: [n, g], float32  ->  [count, g]
    """
    drawn = torch.randperm(len(x), generator=generator, device="cpu")[:count]
    means = x[drawn.repeat(-(-count // len(drawn)))[:count].to(x.device)]
    found = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    for _ in range(iterations):
        before, found = found, nearest_vectors(x, means)
        if torch.equal(found, before):
            break
        sums = torch.zeros_like(means).index_add_(0, found, x)
        sizes = torch.bincount(found, minlength=count)[:, None]
        means = torch.where(sizes > 0, sums / sizes.clamp(min=1), means)
    return means


def started(W: Tensor, config: AqlmConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Residual k-means of W over its rows' norms (step 1).

    W: [out, in], float32  ->  codes int64 [out, in // g, K], tables [K, 2^B, g], scale [out, 1]
    """
    generator = torch.Generator("cpu").manual_seed(config.seed)
    norm = W.norm(dim=1, keepdim=True)
    scale = torch.where(norm > 0, norm, 1.0)
    left = (W / scale).reshape(-1, config.group_size)
    codes, tables = [], []
    for _ in range(config.codebooks):
        table = kmeans(left, 2**config.bits, config.kmeans_iterations, generator)
        found = nearest_vectors(left, table)
        left = left - table[found]
        codes.append(found.view(len(W), -1))
        tables.append(table)
    return torch.stack(codes, dim=2), torch.stack(tables), scale


def error(delta: Tensor, H: Tensor) -> float:
    """tr(delta H delta^T) / out.  delta: [out, in]  H: [in, in]"""
    return float((delta @ H).mul_(delta).sum(dtype=torch.float64)) / len(delta)


def train(
    optimizer: torch.optim.Optimizer, codes: Tensor, W: Tensor, H: Tensor, least: Tensor, steps: int
) -> None:
    """Steps on tables and scales, which the optimizer holds (phase 2 of the paper).

    least: [out, 1], below which no scale falls
    """
    tables, scale = optimizer.param_groups[0]["params"]
    places = [codes[:, :, k].flatten() for k in range(codes.shape[2])]
    for _ in range(steps):
        unit = decoded(codes, tables, torch.ones_like(scale))
        # Of the error, by W^: one product with H, where autograd would take two.
        slope = ((unit * scale - W) @ H).mul_(2 / len(W))
        scale.grad = (slope * unit).sum(1, keepdim=True)
        by_group = (slope * scale).view(-1, tables.shape[2])
        sums = [torch.zeros_like(tables[0]).index_add_(0, place, by_group) for place in places]
        tables.grad = torch.stack(sums)
        optimizer.step()
        torch.maximum(scale, least, out=scale)


def beam_search(
    codes: Tensor, tables: Tensor, scale: Tensor, W: Tensor, H: Tensor, beam: int
) -> Tensor:
    """Codes whose error is no greater, row by row (phase 1 of the paper).

    Group by group, and in it table by table, each of the `beam` sets of a row's codes is tried with
    every code in that place; the best `beam` of all go on.  Present codes are among them.
    codes: int64 [out, in // g, K]  ->  the same
    """
    rows = max(1, _AT_ONCE // (beam * tables.shape[1]))
    parts = zip(*(torch.split(of, rows) for of in (codes, scale, W)), strict=True)
    return torch.cat([_search(part, tables, s, w, H, beam) for part, s, w in parts])


def _search(
    codes: Tensor, tables: Tensor, scale: Tensor, W: Tensor, H: Tensor, beam: int
) -> Tensor:
    """The same for rows of which all scores fit memory; b of the shapes is how many sets there are.

    With v = scale * vector in place of u, half the error's slope being s = delta H, a row's error
    changes by 2 (v - u) s^T + (v - u) H (v - u)^T, over the group's inputs alone.
    """
    out, groups, books = codes.shape
    row, g = torch.arange(out, device=W.device), tables.shape[2]
    sets, delta = codes[None].clone(), (decoded(codes, tables, scale) - W)[None]
    errors = ((delta @ H) * delta).sum(2)  # [b, out]
    for group in range(groups):
        inputs = slice(group * g, (group + 1) * g)
        block = H[inputs, inputs]
        slope, moved = delta @ H[:, inputs], torch.zeros_like(delta[:, :, inputs])  # [b, out, g]
        words = sets[:, :, group]  # [b, out, K]
        origin = torch.arange(len(sets), device=W.device)[:, None].expand(-1, out)
        for k in range(books):
            table = tables[k]
            u = table[words[:, :, k]] * scale
            without = errors - ((2 * slope - u @ block) * u).sum(2)
            least = without.amin(0)  # of a row: what is large and common is left out of scores
            own = ((table @ block) * table).sum(1, keepdim=True)
            # By the row's scale, which is positive, so that every score is one product.
            parts = [2 * (slope - u @ block), scale.expand(len(u), -1, -1)]
            left = torch.cat([*parts, (without - least)[:, :, None] / scale], dim=2)
            right = torch.cat([table, own, torch.ones_like(own)], dim=1)
            scores = (left.transpose(0, 1) @ right.T).flatten(1)  # [out, b * 2^B]
            best, place = (
                scores.min(dim=1, keepdim=True)
                if beam == 1
                else scores.topk(min(beam, scores.shape[1]), dim=1, largest=False)
            )
            source, chosen = (place // len(table)).T, (place % len(table)).T  # [b, out]
            change = table[chosen] * scale - u[source, row]
            slope = slope[source, row] + change @ block
            moved = moved[source, row] + change
            words, origin = words[source, row], origin[source, row]
            errors = (best * scale).T + least
            words[:, :, k] = chosen
        if beam > 1:
            sets, delta = sets[origin, row], delta[origin, row]
        sets[:, :, group] = words
        delta[:, :, inputs] += moved
    return sets[errors.argmin(0), row]


def compress(
    current: CompressedWeight, H: Tensor, config: AqlmConfig
) -> tuple[VectorCoded, dict[str, float | int | str]]:
    """Steps 1 to 3, and what they did.  H: [in, in]"""
    weight = unquantized(current, "aqlm")
    if isinstance(weight, Sparse):
        msg = (
            "aqlm: an earlier step pruned this weight, and a code stands for several inputs at "
            "once. Leave one of the two out."
        )
        raise ConfigError(msg)
    W, H = weight.dequantize(), H.float()
    codes, tables, scale = started(W, config)
    least = LEAST_SCALE * scale
    optimizer = torch.optim.Adam(
        [tables, scale],
        lr=config.learning_rate,
        betas=(0.0, 0.95),
        amsgrad=True,
    )
    best = codes, tables.clone(), scale.clone()
    first = lowest = error(decoded(*best) - W, H)
    done = 0
    for _ in range(config.rounds):
        done += 1
        train(optimizer, codes, W, H, least, config.steps)
        codes = beam_search(codes, tables, scale, W, H, config.beam)
        now = error(decoded(codes, tables, scale) - W, H)
        enough = now < (1 - config.tolerance) * lowest
        if now < lowest:
            lowest = now
            best = codes, tables.clone(), scale.clone()
        if not enough:
            break
    codes, tables, scale = best
    made = VectorCoded(
        codes.to(code_dtype(config.bits)), cast(tables, config.dtype), cast(scale, config.dtype)
    )
    after = error(made.dequantize() - W, H)
    return made, {"rounds": done, "error_kmeans": first, "error_after": after}


class _Aqlm:
    name = "aqlm"
    paper = "arXiv:2401.06118"
    config = AqlmConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: AqlmConfig) -> str | None:
        if shape[1] % config.group_size:
            return f"vectors of {config.group_size} inputs do not divide in = {shape[1]}"
        entries = config.codebooks * 2**config.bits * config.group_size
        if entries * BITS_OF[config.dtype] > 32 * shape[0] * shape[1]:
            return f"its tables of {entries} numbers would take more than the layer as float32"
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: AqlmConfig
    ) -> Reported:
        if found := self.problem(current.shape, config):
            raise ConfigError(f"aqlm: {found}.")
        if stats.H is None:
            msg = "aqlm: needs the inputs' second moments; the recipe has no calibration data."
            raise ConfigError(msg)
        return Reported(*compress(current, stats.H, config))


AQLM = _Aqlm()
