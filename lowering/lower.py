"""Model, formats and target in; every stage and one compiled module out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trinity.lowering.graph.export import export_functions
from trinity.lowering.graph.operators.operator import Operator
from trinity.lowering.graph.operators.table import operators_of
from trinity.lowering.kernels.calls import KernelCode, with_kernels
from trinity.lowering.kernels.cpu.cpus import HOST
from trinity.lowering.mlir.calls import CallOf, PackedCall, Signature, Site
from trinity.lowering.module.compile import compile_text, target_text
from trinity.lowering.plan import Lowering
from trinity.methods.errors import ConfigError


@dataclass(frozen=True)
class LoweredModel:
    """The text of every stage and the compiled module.

    parameters: names the module reads from its parameter file
    meta: what `CompiledModel` needs beside the module and the parameters; plain data
    """

    torch: str
    annotated: str
    storage: str
    target: str
    vmfb: bytes
    parameters: tuple[str, ...]
    meta: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `module.vmfb` and `module.json`, and nothing that depends on weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "module.vmfb").write_bytes(self.vmfb)
        data = {**self.meta, "parameters": list(self.parameters)}
        (folder / "module.json").write_text(json.dumps(data, indent=1, sort_keys=True), "utf-8")


def lower(
    model: nn.Module, plan: Lowering, progress: Callable[[str], None] = lambda _: None
) -> LoweredModel:
    """Export, annotate, store and compile.  `model` may be on `meta`: its numbers are not read.

    progress: told each stage as it starts
    """
    progress("export")
    return lower_exported(export(model, plan), plan, progress)


def export(model: nn.Module, plan: Lowering) -> str:
    """Stage torch.

    It depends on `export_key(plan)` alone: weights of any format are exported alike.
    """
    # Imported here: it loads torch-mlir, which a model that is lowered already does without.
    from trinity.lowering.mlir import dialects

    _check_dtype(model, plan)
    operators = operators_of(plan)
    functions = [
        function
        for tokens in plan.lengths
        for function in export_functions(model, plan, tokens, operators)
    ]
    return dialects.merged(functions, "torch")


def export_key(plan: Lowering) -> dict[str, Any]:
    """Plain data on which stage torch depends: of what is opaque in it, names and shapes."""
    found, operators = plan.fingerprint(), operators_of(plan)
    kept = ("config", "dtype", "tables", "batch", "lengths", "max_length", "cache_length", "cache")
    opaque = {
        operator.signature.name: {str(tokens): operator.opaque(tokens) for tokens in plan.lengths}
        for operator in operators
    }
    return {key: found[key] for key in (*kept, "versions")} | {"opaque": opaque}


def lower_exported(
    torch_text: str, plan: Lowering, progress: Callable[[str], None] = lambda _: None
) -> LoweredModel:
    """The stages after export.

    torch_text: what `export` gave for such a plan   progress: told each stage as it starts
    """
    from trinity.lowering.mlir import dialects  # as in `export`

    operators, kernels = operators_of(plan), dict[str, KernelCode]()
    progress("annotate")
    annotated = dialects.call_packed(torch_text, _annotated(operators, kernels))
    progress("storage")
    stored = dialects.substitute_packed(annotated, _stored(operators, kernels))
    progress("compile")
    final = target_text(with_kernels(stored, kernels.values()), plan.target)
    vmfb = compile_text(final, plan.target)
    names = tuple(dialects.global_names(stored, "storage"))
    return LoweredModel(torch_text, annotated, stored, final, vmfb, names, _meta(plan))


def _check_dtype(model: nn.Module, plan: Lowering) -> None:
    found = {
        str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()
    }
    if found != {plan.dtype}:
        msg = f"model: its parameters are {', '.join(sorted(found))}, the plan says {plan.dtype}."
        raise ConfigError(msg)


def _annotated(
    operators: Sequence[Operator], kernels: dict[str, KernelCode]
) -> dict[Signature, CallOf]:
    """What each operator's call becomes.

    kernels: gets those of operators without parameters, whose call does not change again
    """
    return {
        of.signature: of.annotated if of.signature.parameter else _with_kernel(of, kernels)
        for of in operators
    }


def _stored(
    operators: Sequence[Operator], kernels: dict[str, KernelCode]
) -> dict[Signature, CallOf]:
    """What the call of each operator that has parameters becomes.  kernels: gets theirs"""
    return {of.signature: _with_kernel(of, kernels) for of in operators if of.signature.parameter}


def _with_kernel(operator: Operator, kernels: dict[str, KernelCode]) -> CallOf:
    """Calls of an operator on what is stored; their kernels are noted by function."""

    def call_of(site: Site) -> PackedCall:
        call = operator.stored(site)
        if call.function not in kernels and (code := operator.code(site)):
            kernels[call.function] = code
        return call

    return call_of


def _meta(plan: Lowering) -> dict[str, Any]:
    """What `CompiledModel` must know."""
    geometry, shape = plan.geometry, plan.shape(1)
    return {
        "lengths": sorted(plan.lengths),
        "max_length": shape.max_length,
        "cache": list(plan.caches),
        "caches": 2 * geometry.layers,
        "dtype": plan.dtype,
        "target": plan.target.name,
        "path": "kernel" if plan.kernels else "compiled",
        "flavour": plan.flavour,
        "cpu": plan.target.cpu.name if plan.target.cpu else HOST,
    }
