"""How fast SparseGPT, GPTQ and Wanda are here, beside the published algorithms written plainly.

One random layer of each size, inputs correlated, float32.  `straight` is the column-by-column
sweep in blocks of 128 columns (for Wanda: a sort of each row, a loop over N:M groups), as
published; `ours` is the method of this package, from the layer's statistics to the checked format.
The two take turns.  Errors are in the Hessian norm, as in the records.  `floor` is the time of the
multiplications and additions that our form needs at the rate of a large matrix product measured in
the same run; for Wanda, which multiplies nothing, the time to read and write what it must at the
measured copying rate.  `peak extra` is what a method
adds to W and H at its peak, the result included; it must stay below four copies of H and three
of W.

    python benchmarks/methods.py --method sparsegpt --json FILE
"""

import argparse
import ctypes
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from trinity.harness.records.environment import environment
from trinity.harness.store.stages import write_json
from trinity.methods import registry
from trinity.methods.contract import LayerStats, Method
from trinity.methods.formats import CompressedWeight, Dense

BLOCK, DAMPING = 128, 0.01
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One method with its options, and the published algorithm beside it."""

    label: str
    method: str
    options: dict[str, Any]
    straight: Callable[[Tensor, LayerStats], Tensor]
    products: bool = True  # whether matrix products make its floor


def main() -> int:
    """Measure every case at every size; a Markdown table on stdout, a record in --json."""
    options = parse()
    found = {
        "schema": "methods-speed/1",
        "command": " ".join(["python", "benchmarks/methods.py", *sys.argv[1:]]),
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "device": options.device,
        "sizes": [measure(size, options) for size in options.sizes],
        "environment": environment() | {"usable_cpus": len(os.sched_getaffinity(0))},
    }
    print(table(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, found)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["2048x2048", "4096x4096"], help="OUTxIN")
    parser.add_argument("--repeats", type=int, default=5, help="kept samples of each form")
    parser.add_argument("--method", default=None, help="sparsegpt, gptq or wanda; else all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    return parser.parse_args()


def layer(out: int, d_in: int, device: str) -> tuple[Tensor, LayerStats]:
    """A weight and the statistics of inputs with a few strong directions."""
    generator = torch.Generator().manual_seed(0)
    rank = max(1, d_in // 16)
    tokens = 2 * d_in
    X = torch.randn(tokens, d_in, generator=generator)
    X += torch.randn(tokens, rank, generator=generator) @ torch.randn(
        rank, d_in, generator=generator
    ).mul_(2 / rank**0.5)
    H = 2 / tokens * X.T @ X
    W = torch.randn(out, d_in, generator=generator)
    H, W = ((H + H.T) / 2).to(device), W.to(device)
    return W, LayerStats(tokens=tokens, x_norm=H.diagonal().sqrt(), H=H)


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every case on one layer, the two forms taking turns."""
    out, d_in = (int(number) for number in size.split("x"))
    W, stats = layer(out, d_in, options.device)
    rate = product_rate(min(4096, max(out, d_in)), options.device)
    copied = copy_rate(W)
    rows = []
    for case in CASES:
        if options.method not in (None, case.method):
            continue
        print(f"{size} {case.label}", file=sys.stderr)
        rows.append(measure_case(case, W, stats, options.repeats, rate, copied))
    for row in rows:  # after all timing: watching memory slows allocation down
        run = partial(fresh, row["options"], W, stats)
        row["peak_extra_bytes"] = min(peak_bytes(run) for _ in range(3))
        row["peak_extra_limit_bytes"] = 4 * (4 * d_in * d_in + 3 * W.numel())
    return {"out": out, "in": d_in, "product_flops_per_s": rate, "copy_bytes_per_s": copied,
            "rows": rows}  # fmt: skip


def measure_case(
    case: Case, W: Tensor, stats: LayerStats, repeats: int, rate: float, copied: float
) -> dict[str, Any]:
    """Times, layer errors, floor and memory of one case."""
    described = {"method": case.method, **case.options}

    ours = partial(fresh, described, W, stats)
    times: dict[str, list[float]] = {"straight_s": [], "ours_s": []}
    straight, found = case.straight(W, stats), ours()  # warm up
    errors = {
        "straight_error": layer_error(W, straight, stats),
        "ours_error": layer_error(W, found.dequantize(), stats),
    }
    del straight, found
    for _ in range(repeats):
        times["straight_s"].append(timed(lambda: case.straight(W, stats)))
        times["ours_s"].append(timed(ours))
    ratios = [a / b for a, b in zip(times["straight_s"], times["ours_s"], strict=True)]
    out, d_in = W.shape
    if case.products:
        # Cholesky, feedback between columns, and the panels' share of it in the factor.
        operations = d_in**3 / 3 + out * d_in**2 + BLOCK * d_in**2
        floor = operations / rate
    else:
        operations, moved = 0.0, 4 * W.numel() * 2 + W.numel()  # read W, write values and mask
        floor = moved / copied
    median = statistics.median(times["ours_s"])
    stats.forget()
    return {
        "case": case.label,
        "options": described,
        **times,
        **errors,
        "relative_difference": errors["ours_error"] / errors["straight_error"] - 1,
        "ratios": ratios,
        "operations": operations,
        "floor_s": floor,
        "share_of_floor": floor / median,
    }


def fresh(described: dict[str, Any], W: Tensor, stats: LayerStats) -> CompressedWeight:
    """A method of the package on one layer, from its options to the checked format.

    Nothing is shared: a layer with the input of another would save the factorization.
    """
    stats.forget()
    name = described["method"]
    method = registry.get(name)
    assert isinstance(method, Method)
    options = {key: value for key, value in described.items() if key != "method"}
    return method.compress(W, Dense(W), stats, registry.configure(name, options))


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one run."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_rate(size: int, device: str) -> float:
    """Multiplications and additions a second of a large float32 product: the best of several."""
    A, B = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    C = torch.empty(size, size, device=device)
    best = min(timed(lambda: torch.mm(A, B, out=C)) for _ in range(6))
    return 2 * size**3 / best


def copy_rate(W: Tensor) -> float:
    """Bytes read and written a second by a copy of W: the best of several."""
    other = torch.empty_like(W)
    best = min(timed(lambda: other.copy_(W)) for _ in range(6))
    return 2 * W.nbytes / best


def layer_error(W: Tensor, found: Tensor, stats: LayerStats) -> float:
    """sqrt(tr(D H D^T)) over the same of W, summed in float64: the error of a record."""
    assert stats.H is not None
    D, H = (found - W).to(W.device), stats.H
    lost, whole = (((A @ H) * A).sum(dtype=torch.float64) for A in (D, W))
    return float(lost / whole) ** 0.5


def peak_bytes(run: Callable[[], Any]) -> int:
    """Memory added while running, the result included: of the GPU, or of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    release_freed_memory()
    process, stop = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.0005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    stop.set()
    watcher.join()
    return peak - before


def release_freed_memory() -> None:
    """Make glibc return what is freed, now and from here on; else the process hides a peak."""
    libc, mmap_threshold = ctypes.CDLL("libc.so.6"), -3
    libc.mallopt(mmap_threshold, 1 << 16)
    libc.malloc_trim(0)


def published_factor(stats: LayerStats, W: Tensor) -> Tensor:
    """U with H^-1 = U^T U, the way the papers' code gets it; clears what dead inputs read in W."""
    assert stats.H is not None
    H = stats.H.clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1
    W[:, dead] = 0
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True)


def straight_sparsegpt(W: Tensor, stats: LayerStats, n: int = 0, m: int = 0) -> Tensor:
    """Column by column in blocks of 128; 50% where no N:M is given.  -> [out, in]"""
    W = W.clone()
    U = published_factor(stats, W)
    for start in range(0, W.shape[1], BLOCK):
        stop = min(start + BLOCK, W.shape[1])
        block, own = W[:, start:stop].clone(), U[start:stop, start:stop]
        errors, kept = torch.zeros_like(block), torch.zeros_like(block)
        losses = torch.zeros_like(block)
        prune = torch.zeros_like(block, dtype=torch.bool)
        if not m:
            scores = block.square() / own.diagonal().square()
            prune = scores <= scores.flatten().sort().values[int(scores.numel() * 0.5)]
        for j in range(stop - start):
            if m and j % m == 0:
                scores = block[:, j : j + m].square() / own.diagonal()[j : j + m].square()
                lowest = scores.topk(m - n, dim=1, largest=False).indices
                prune.scatter_(1, j + lowest, True)
            column = block[:, j].clone()
            column[prune[:, j]] = 0
            kept[:, j] = column
            losses[:, j] = (block[:, j] - column).square() / own[j, j].square()
            error = (block[:, j] - column) / own[j, j]
            block[:, j:] -= error[:, None] @ own[j, None, j:]
            errors[:, j] = error
        W[:, start:stop] = kept
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return W


def straight_gptq(W: Tensor, stats: LayerStats, bits: int = 4, group: int | None = None) -> Tensor:
    """Column by column in blocks of 128, min-max grids of rows or groups.  -> [out, in]"""
    W, top = W.clone(), 2**bits - 1
    U = published_factor(stats, W)

    def grid(values: Tensor) -> tuple[Tensor, Tensor]:
        low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
        scale = (high - low) / top
        return scale[:, None], torch.round(-low / scale)[:, None]

    scale, zero = grid(W)
    for start in range(0, W.shape[1], BLOCK):
        stop = min(start + BLOCK, W.shape[1])
        block, own = W[:, start:stop].clone(), U[start:stop, start:stop]
        errors, kept = torch.zeros_like(block), torch.zeros_like(block)
        losses = torch.zeros_like(block)
        for j in range(stop - start):
            if group and (start + j) % group == 0:
                scale, zero = grid(W[:, start + j : start + j + group])
            column = block[:, j, None]
            codes = torch.clamp(torch.round(column / scale) + zero, 0, top)
            rounded = (scale * (codes - zero)).flatten()
            kept[:, j] = rounded
            losses[:, j] = (block[:, j] - rounded).square() / own[j, j].square()
            error = (block[:, j] - rounded) / own[j, j]
            block[:, j:] -= error[:, None] @ own[j, None, j:]
            errors[:, j] = error
        W[:, start:stop] = kept
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return W


def straight_wanda(W: Tensor, stats: LayerStats, n: int = 0, m: int = 0) -> Tensor:
    """A stable sort of every row, or a loop over the groups of N:M.  -> [out, in]"""
    assert stats.x_norm is not None
    W, scores = W.clone(), W.abs() * stats.x_norm
    prune = torch.zeros_like(scores, dtype=torch.bool)
    if m:
        for start in range(0, W.shape[1], m):
            lowest = scores[:, start : start + m].topk(m - n, dim=1, largest=False).indices
            prune.scatter_(1, start + lowest, True)
    else:
        order = scores.sort(dim=-1, stable=True).indices
        prune.scatter_(1, order[:, : W.shape[1] // 2], True)
    W[prune] = 0
    return W


FLOAT = {"scale_dtype": "float32"}  # the published code rounds no scale
CASES = [
    Case("sparsegpt 2:4", "sparsegpt", {"pattern": "2:4"},
         lambda W, s: straight_sparsegpt(W, s, 2, 4)),
    Case("sparsegpt 50%", "sparsegpt", {"pattern": "50%"}, straight_sparsegpt),
    Case("gptq 4 bits, row", "gptq", {"group_size": "channel", **FLOAT}, straight_gptq),
    Case("gptq 4 bits, group 128", "gptq", {"group_size": 128, **FLOAT},
         lambda W, s: straight_gptq(W, s, group=128)),
    Case("wanda 2:4", "wanda", {"pattern": "2:4"}, lambda W, s: straight_wanda(W, s, 2, 4), False),
    Case("wanda 50%", "wanda", {"pattern": "50%"}, straight_wanda, False),
]  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown: medians, and the range of the ratios."""
    lines = [
        "| layer | method | straight, s | ours, s | ratio (range) | error, relative difference "
        "| floor, s | share of floor | peak extra, MB (limit) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size in found["sizes"]:
        for row in size["rows"]:
            straight, ours = (statistics.median(row[key]) for key in ("straight_s", "ours_s"))
            ratios = row["ratios"]
            lines.append(
                f"| {size['out']}x{size['in']} | {row['case']} | {straight:.3f} | {ours:.3f} "
                f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
                f"| {row['relative_difference']:+.1e} | {row['floor_s']:.3f} "
                f"| {row['share_of_floor']:.0%} | {row['peak_extra_bytes'] / 1e6:.0f} "
                f"({row['peak_extra_limit_bytes'] / 1e6:.0f}) |"
            )
        rate = size["product_flops_per_s"] / 1e9
        lines += ["", f"{size['out']}x{size['in']}: products at {rate:.0f} Gflop/s, copies at "
                  f"{size['copy_bytes_per_s'] / 1e9:.1f} GB/s.", ""]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
