"""How fast OPTIMA's programme is solved, against the solver that was published with it.

One square layer, 2:4 by Wanda. Weights are normal with the size they have in language models
(0.02); inputs are correlated (eigenvalues fall as 1 / j^1.2) and their channels differ in size.
Timed in one run on the same tensors:

- ours: the method `optima` as a recipe runs it, inversion and acceptance included
- mpax: the published formulation (box, dummy rows) by raPDHG, rows in one batch under vmap
- torch: the same programme by the variant `reference`'s solver

The two first-order solvers are timed on one batch of rows as large as the published code's, and
scaled to the layer, which is solved batch by batch. mpax is compiled before it is timed.

    pip install mpax
    python benchmarks/optima.py --json FILE
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.latency import memory
from trinity.harness.records.environment import environment
from trinity.harness.store.stages import write_json
from trinity.methods import box_qp, optima, wanda
from trinity.methods.contract import Reported
from trinity.methods.formats import NM, Dense, Sparse

DECAY = 1.2
TOKENS = 2  # times the inputs
WEIGHT_STD = 0.02


def main() -> int:
    """Measure every size; a Markdown table on stdout, a record in --json."""
    options = parse()
    torch.set_grad_enabled(False)
    device = torch.device(options.device)
    found = {
        "schema": "optima-speed/1",
        "command": " ".join(["python", "benchmarks/optima.py", *sys.argv[1:]]),
        "sizes": [measure(size, options, device) for size in options.size],
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
    parser.add_argument("--size", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rows", type=int, help="given to the slow solvers; the published batch")
    parser.add_argument("--ours", type=float, nargs="+", default=[1e-2, 1e-3], help="tolerances")
    parser.add_argument("--tolerance", type=float, nargs="+", default=[1e-2, 1e-3])
    parser.add_argument("--solvers", nargs="*", default=["mpax", "torch"])
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record")
    return parser.parse_args()


def layer(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A weight [size, size] and the H of its inputs, from a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    W = WEIGHT_STD * torch.randn(size, size, generator=draw)
    basis = torch.linalg.qr(torch.randn(size, size, generator=draw))[0]
    spectrum = torch.arange(1, size + 1).float() ** (-DECAY / 2)
    channels = (0.5 * torch.randn(size, generator=draw)).exp()
    X = torch.randn(TOKENS * size, size, generator=draw) * spectrum @ basis.T
    X = X / X.square().mean().sqrt() * channels
    return W.to(device), (2 / len(X) * X.T @ X).to(device)


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds and the result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def matmul_rate(size: int, device: torch.device) -> float:
    """Operations a second of the faster of two [size, size] products in float32."""
    A, B = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: A @ B, device)[0] for _ in range(2))


def measure(size: int, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Every solver on one layer."""
    W, H = layer(size, device)
    mask = wanda.mask(W, H.diagonal().sqrt(), NM(2, 4))
    count = options.rows or min(size, optima.BATCH_ENTRIES // size**2)
    rows = slice(0, count)
    found: dict[str, Any] = {
        "size": size,
        "rows_timed": count,
        "masked_error": row_errors(W[rows] * ~mask[rows], H),
        "ours": [],
        "others": [],
    }
    for tolerance in options.ours:
        mine, weight = ours(W, H, mask, tolerance, options.repeats, device)
        mine["error_of_rows"] = row_errors(weight[rows] - W[rows], H)
        found["ours"].append({"tolerance": tolerance, **mine})
        print(f"{size} {found['ours'][-1]}", file=sys.stderr)
    for solver in options.solvers:
        for tolerance in options.tolerance:
            run = {"mpax": by_mpax, "torch": by_torch}[solver]
            seconds, w, facts = run(W[rows], H, mask[rows], tolerance, device)
            whole = seconds * size / count
            found["others"].append(
                {
                    "solver": solver,
                    "tolerance": tolerance,
                    "seconds_of_rows": seconds,
                    "seconds_of_layer": whole,
                    "times_ours": whole / found["ours"][0]["seconds"],
                    "error_of_rows": row_errors(w - W[rows], H),
                    **facts,
                }
            )
            print(f"{size} {found['others'][-1]}", file=sys.stderr)
    return found


def row_errors(delta: Tensor, H: Tensor) -> float:
    """Squared error of some rows, in float64."""
    D = delta.double()
    return float(((D @ H.double()) * D).sum())


def ours(
    W: Tensor,
    H: Tensor,
    mask: Tensor,
    tolerance: float,
    repeats: int,
    device: torch.device,
) -> tuple[dict[str, Any], Tensor]:
    """The method as a recipe runs it: time, operations, floor, share, memory.  -> it, weight"""
    current, config = Sparse(Dense(W), mask, NM(2, 4)), optima.OptimaConfig(tolerance=tolerance)

    def run() -> Any:
        return optima.compress(W, current, optima.Problem(H, H), config)

    extra = extra_bytes(run, device)
    samples, rates, made = [], [matmul_rate(len(H), device)], None
    for _ in range(repeats):
        made = None
        seconds, made = timed(run, device)
        samples.append(seconds)
        rates.append(matmul_rate(len(H), device))
    assert isinstance(made, Reported)
    size, rate = len(H), max(rates)
    # Beside the solver's: errors before, after, and of W are three products; the Cholesky factor
    # and the inverse from it are one of [in, in] matrices.
    operations = 2 * size**2 * (made.details["row_products"] + 3 * len(W)) + size**3
    seconds = statistics.median(samples)
    found = {
        "seconds": seconds,
        "samples": samples,
        "operations": operations,
        "matmul_flops_s": rates,
        "floor_s": operations / rate,
        "share_of_floor": operations / rate / seconds,
        "details": dict(made.details),
        "extra_bytes": extra,
        "allowed_bytes": 4 * (4 * H.numel() + 3 * W.numel()),
    }
    return found, made.weight.dequantize()


def extra_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Peak of what a call holds beyond what was there; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    torch.ones(8, 8) @ torch.ones(8, 8)
    before = memory.resident_bytes()
    _, peak = memory.peak_during(run)
    return None if peak is None else peak - before


def by_torch(
    W: Tensor, H: Tensor, mask: Tensor, tolerance: float, device: torch.device
) -> tuple[float, Tensor, dict[str, Any]]:
    """The variant `reference`'s solver."""
    lower, upper = bounds(W, mask)
    seconds, found = timed(
        lambda: box_qp.solve(H / 2, lower, upper, tolerance, optima.ITERATIONS["reference"]),
        device,
    )
    facts = {"iterations": found.iterations, "optimal": int(found.optimal.sum())}
    return seconds, (W + found.d) * mask, facts


def bounds(W: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The published box: free where kept, [-w, -w + 1e-4] where pruned."""
    inf = torch.inf
    return torch.where(mask, -inf, -W), torch.where(mask, inf, optima.BOX - W)


def by_mpax(
    W: Tensor, H: Tensor, mask: Tensor, tolerance: float, device: torch.device
) -> tuple[float, Tensor, dict[str, Any]]:
    """The published formulation with the published solver, called as its code calls it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from mpax import create_qp, raPDHG

    size = len(H)
    Q, zero = jnp.asarray((H / 2).cpu().numpy()), jnp.zeros(size)
    A, b = jnp.zeros((1, size)), jnp.zeros(1)
    G, h = jnp.ones((1, size)), jnp.full(1, -1e5)

    def one(lower: Any, upper: Any) -> Any:
        problem = create_qp(Q, zero, A, b, G, h, lower, upper, use_sparse_matrix=False)
        solver = raPDHG(
            eps_abs=tolerance,
            eps_rel=tolerance,
            verbose=False,
            iteration_limit=optima.ITERATIONS["reference"],
        )
        found = solver.optimize(problem)
        return found.primal_solution, found.termination_status, found.iteration_count

    low, high = (jnp.asarray(bound.cpu().numpy()) for bound in bounds(W, mask))
    batch = jax.vmap(one)
    jax.block_until_ready(batch(low, high))  # compiles
    start = time.perf_counter()
    solution, status, iterations = jax.block_until_ready(batch(low, high))
    seconds = time.perf_counter() - start
    w = (W.cpu() + torch.from_numpy(np.array(solution))) * mask.cpu()
    facts = {
        "iterations": int(np.max(iterations)),
        "optimal": int((np.asarray(status) == 2).sum()),
    }
    return seconds, w.to(W.device), facts


def table(found: dict[str, Any]) -> str:
    """The sizes as Markdown."""
    lines = [
        "| size | solver | tolerance | iterations | s a layer | times ours | error / masked "
        "| share of the floor | extra memory / allowed |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size in found["sizes"]:
        masked = size["masked_error"]
        for mine in size["ours"]:
            extra = mine["extra_bytes"]
            held = "" if extra is None else f"{extra / mine['allowed_bytes']:.0%}"
            times = mine["seconds"] / size["ours"][0]["seconds"]
            lines.append(
                f"| {size['size']} | ours | {mine['tolerance']:g} "
                f"| {mine['details']['iterations']} | {mine['seconds']:.2f} | {times:.2f} "
                f"| {mine['error_of_rows'] / masked:.4f} | {mine['share_of_floor']:.0%} | {held} |"
            )
        lines += [
            f"| {size['size']} | {other['solver']} | {other['tolerance']:g} "
            f"| {other['iterations']} | {other['seconds_of_layer']:.1f} "
            f"| {other['times_ours']:.1f} | {other['error_of_rows'] / masked:.4f} | | |"
            for other in size["others"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
