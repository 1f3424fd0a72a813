"""The only import of torch-mlir: contexts, parsing, verification, and rewriting of modules as text.

A module crosses every border as text.  torch-mlir and IREE carry two builds of MLIR of different
age, so their objects cannot meet.
"""

import math
import re
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch_mlir import fx, ir
from torch_mlir.dialects import torch as torch_dialect
from torch_mlir.extras.fx_decomp_util import get_decomposition_table
from torch_mlir.extras.fx_importer import FxImporter, FxImporterHooks, GraphNodeImporter, InputInfo
from torch_mlir.passmanager import PassManager

from trinity.lowering.mlir.builder import tensor_type
from trinity.lowering.mlir.calls import CallOf, PackedCall, Signature, Site
from trinity.methods.errors import LoweringError

TORCH_PIPELINE = (
    "builtin.module(func.func(torch-match-quantized-custom-ops),"
    "torchdynamo-export-to-torch-backend-pipeline{backend-legal-ops= extra-library=})"
)
GLOBAL_LOAD = "ml_program.global_load_const"


def new_context() -> ir.Context:
    """A context with the dialects of every stage up to storage, `torch_c` included."""
    context = ir.Context()
    torch_dialect.register_dialect(context)
    with context:
        # torch_c has no registration of its own; a pass that produces it brings it in.
        empty = ir.Module.parse("")
        PassManager.parse("builtin.module(torch-func-backend-type-conversion)").run(empty.operation)
    return context


def verified(text: str, stage: str) -> str:
    """The text after parsing, verifying, and a round trip; LoweringError if any of them fails."""
    with new_context():
        printed = str(_parse(text, stage))
        if str(_parse(printed, stage)) != printed:
            msg = (
                f"{stage} module: printing and parsing it again changes it. This is a compiler bug."
            )
            raise LoweringError(msg)
    return printed


def import_program(
    program: torch.export.ExportedProgram, function: str, parameter_name: Callable[[str], str]
) -> str:
    """An exported program as text in the torch dialect.

    Parameters and buffers become `ml_program` globals without values, so that the text depends on
    the architecture alone.  parameter_name: from the program's name of an input to the global's
    """
    context = new_context()
    with warnings.catch_warnings():
        # torch's own copyreg path warns about torch's own pytree; nothing here can change that.
        warnings.simplefilter("ignore", FutureWarning)
        module = fx.export_and_import(
            program,
            output_type=fx.OutputType.RAW,
            experimental_support_mutation=True,
            func_name=function,
            decomposition_table=_decompositions(),
            fx_importer=FxImporter(context=context, hooks=_ExternParameters(parameter_name)),
        )
    return str(module)


def _decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Tensor]]:
    """torch-mlir's, and tanh-GELU, which IREE computes with an error of 5e-5 when left whole."""
    table = dict(get_decomposition_table())
    table[torch.ops.aten.gelu.default] = _tanh_gelu
    return table


def _tanh_gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate != "tanh":
        found: Tensor = NotImplemented  # torch's protocol: leave this call as it is
        return found
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class _ExternParameters(FxImporterHooks):  # type: ignore[misc]  # torch-mlir has no types
    """Parameters and buffers become loads of external globals instead of inlined numbers."""

    def __init__(self, parameter_name: Callable[[str], str]) -> None:
        self.parameter_name = parameter_name
        self.module: ir.Operation | None = None

    def prepare_module(self, module_op: ir.Operation) -> None:
        """Remember where globals go."""
        self.module = module_op

    def resolve_input(
        self, gni: GraphNodeImporter, value: Tensor, info: InputInfo
    ) -> ir.Value | None:
        """Load the global of a parameter or buffer."""
        name = self.parameter_name(info.input_spec.target)
        kind = tensor_type(value.shape, value.dtype)
        if self.module is not None:
            declare_global(self.module, name, kind)
        return to_torch(load_global(name, kind), info.ir_type)


def merged(texts: Iterable[str], stage: str) -> str:
    """One module with the functions of several; globals of one name are one global."""
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse("")
        names: set[str] = set()
        for text in texts:
            source = _parse(text, stage)
            for operation in source.body.operations:
                if _name(operation) not in names:
                    names.add(_name(operation))
                    operation.operation.clone(ir.InsertionPoint(module.body))
        return str(module)


def call_packed(text: str, calls_of: Mapping[Signature, CallOf]) -> str:
    """Stage torch to annotated: each opaque operator becomes a call of its own function."""
    operators = {f"torch.trinity.{of.name}": of for of in calls_of}
    calls = []
    with new_context(), ir.Location.unknown():
        module = _parse(text, "torch")
        for operation in _operators(module, operators):
            count = len(operation.results)
            operator = operators[ir.StringAttr(operation.attributes["name"]).value]
            named = operation.operands[operator.site % len(operation.operands)]
            call = calls_of[operator](Site(_string(named), _size(operation, operator.rows)))
            calls.append(call)
            with ir.InsertionPoint(operation):
                sources = [
                    to_builtin(operation.operands[i], kind) for i, kind in enumerate(call.inputs)
                ]
                found = _call(module, call, sources)
                results = [to_torch(found[i], operation.results[i].type) for i in range(count)]
            for i, result in enumerate(results):
                operation.results[i].replace_all_uses_with(result)
            operation.erase()
        _drop_unused(module)
        # Declarations first: the pipeline would inline bodies, and with them what says what they
        # are.
        declared = [replace(call, body=None) for call in calls]
        _add_functions(module, declared, "annotated")
        _run(module, TORCH_PIPELINE, "torch")
        _drop_functions(module, calls)
        _add_functions(module, calls, "annotated")
        return verified(str(module), "annotated")


def substitute_packed(text: str, calls_of: Mapping[Signature, CallOf]) -> str:
    """Stage annotated to storage: the same calls, by the same names, on stored tensors.

    calls_of: of operators with parameters
    """
    calls = []
    with new_context(), ir.Location.unknown():
        module = _parse(text, "annotated")
        for operation in _packed_calls(module):
            function = ir.FlatSymbolRefAttr(operation.attributes["callee"]).value
            operator = next(of for of in calls_of if function.startswith(of.prefix))
            name = _first_global(operation).removesuffix(f".{operator.parameter}")
            rows = ir.RankedTensorType(operation.operands[0].type).shape[operator.rows]
            call = calls_of[operator](Site(name, rows))
            calls.append(call)
            with ir.InsertionPoint(operation):
                found = _call(module, call, list(operation.operands)[: len(call.inputs)])
            for i, result in enumerate(found):
                operation.results[i].replace_all_uses_with(result)
            operation.erase()
        _drop_unused(module)
        _drop_functions(module, calls)
        _add_functions(module, calls, "storage")
        return verified(str(module), "storage")


def global_names(text: str, stage: str) -> list[str]:
    """Names of the external globals of a module, sorted."""
    with new_context():
        operations = _parse(text, stage).body.operations
        return sorted(_name(o) for o in operations if o.operation.name == "ml_program.global")


def _string(value: ir.Value) -> str:
    """A constant string."""
    found: str = ir.StringAttr(value.owner.attributes["value"]).value
    return found


def _size(operation: ir.Operation, axis: int) -> int:
    """Size of an operator's first operand along an axis."""
    found = re.match(r"!torch\.vtensor<\[([\d,]+)\],", str(operation.operands[0].type))
    if found is None:
        name = ir.StringAttr(operation.attributes["name"]).value
        msg = f"{name}: its input {operation.operands[0].type} has no fixed shape."
        raise LoweringError(msg)
    return int(found[1].split(",")[axis])


def _packed_calls(module: ir.Module) -> list[ir.Operation]:
    """Calls that are given a weight."""
    return [o for o in _operations(module) if o.name == "func.call" and _first_global(o)]


def _first_global(operation: ir.Operation) -> str:
    """The first operand that is a global's value; empty without."""
    for operand in operation.operands:
        owner = operand.owner
        if not isinstance(owner, ir.Block) and owner.name == GLOBAL_LOAD:
            name: str = ir.FlatSymbolRefAttr(owner.attributes["global"]).value
            return name
    return ""


def _call(module: ir.Module, call: PackedCall, sources: Sequence[ir.Value]) -> list[ir.Value]:
    operands = []
    for name, kind in call.operands:
        declare_global(module.operation, name, kind)
        operands.append(load_global(name, kind))
    operation = ir.Operation.create(
        "func.call",
        results=[ir.Type.parse(kind) for kind in call.results],
        operands=[*sources, *operands],
        attributes={"callee": ir.FlatSymbolRefAttr.get(call.function)},
    )
    return list(operation.results)


def _add_functions(module: ir.Module, calls: Iterable[PackedCall], stage: str) -> None:
    """Add each function once."""
    for text in dict.fromkeys(call.text for call in calls):
        source = _parse(text, stage)
        source.body.operations[0].operation.clone(ir.InsertionPoint(module.body))


def _drop_functions(module: ir.Module, calls: Iterable[PackedCall]) -> None:
    """Erase functions that are about to be added again with other bodies."""
    names = {call.function for call in calls}
    for operation in list(module.body.operations):
        if _name(operation) in names:
            operation.operation.erase()


def _drop_unused(module: ir.Module) -> None:
    """Erase loads, views, lists and strings without users, then globals that nobody loads."""
    pure = {"torch_c.from_builtin_tensor", GLOBAL_LOAD}
    pure |= {"torch.prim.ListConstruct", "torch.constant.str", "torch.constant.int"}
    for operation in reversed(_operations(module)):
        if operation.name in pure and not any(
            True for result in operation.results for _ in result.uses
        ):
            operation.erase()
    loads = [o for o in _operations(module) if o.name == GLOBAL_LOAD]
    loaded = {ir.FlatSymbolRefAttr(load.attributes["global"]).value for load in loads}
    for operation in list(module.body.operations):
        if operation.operation.name == "ml_program.global" and _name(operation) not in loaded:
            operation.operation.erase()


def _operators(module: ir.Module, names: Container[str]) -> list[ir.Operation]:
    """The opaque operators of these names."""
    found = [o for o in _operations(module) if o.name == "torch.operator"]
    return [o for o in found if ir.StringAttr(o.attributes["name"]).value in names]


def _operations(module: ir.Module) -> list[ir.Operation]:
    """Every operation inside a module, in order; a list, so that callers may erase."""
    found: list[ir.Operation] = []

    def note(operation: ir.Operation) -> ir.WalkResult:
        found.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(note, ir.WalkOrder.PRE_ORDER)
    return found[1:]


def declare_global(module: ir.Operation, name: str, kind: str) -> None:
    """Declare, once, a global whose numbers come from outside, at the top of the module."""
    body = module.regions[0].blocks[0]
    if any(_name(o) == name for o in body.operations if "sym_name" in o.operation.attributes):
        return
    with ir.InsertionPoint.at_block_begin(body), ir.Location.unknown(module.context):
        ir.Operation.create(
            "ml_program.global",
            attributes={
                "sym_name": ir.StringAttr.get(name),
                "sym_visibility": ir.StringAttr.get("private"),
                "type": ir.TypeAttr.parse(kind),
                "value": ir.Attribute.parse(f"#ml_program.extern<{kind}>"),
            },
        )


def load_global(name: str, kind: str) -> ir.Value:
    """Load a global at the current insertion point."""
    return ir.Operation.create(
        GLOBAL_LOAD,
        results=[ir.Type.parse(kind)],
        attributes={"global": ir.FlatSymbolRefAttr.get(name)},
    ).result


def to_torch(value: ir.Value, torch_type: ir.Type) -> ir.Value:
    """View a builtin tensor as a torch tensor."""
    return ir.Operation.create(
        "torch_c.from_builtin_tensor", results=[torch_type], operands=[value]
    ).result


def to_builtin(value: ir.Value, kind: str) -> ir.Value:
    """View a torch tensor as a builtin tensor."""
    return ir.Operation.create(
        "torch_c.to_builtin_tensor", results=[ir.Type.parse(kind)], operands=[value]
    ).result


def _name(operation: ir.Operation) -> str:
    value: str = ir.StringAttr(operation.operation.attributes["sym_name"]).value
    return value


def _parse(text: str, stage: str) -> ir.Module:
    try:
        module = ir.Module.parse(text)
        module.operation.verify()
    except ir.MLIRError as error:
        msg = f"{stage} module: does not verify in torch-mlir. {first_lines(str(error))}"
        raise LoweringError(msg) from error
    return module


def _run(module: ir.Module, pipeline: str, stage: str) -> None:
    try:
        PassManager.parse(pipeline).run(module.operation)
    except ir.MLIRError as error:
        msg = f"{stage} module: torch-mlir cannot lower it. {first_lines(str(error))}"
        raise LoweringError(msg) from error


def first_lines(text: str, count: int = 4) -> str:
    """The first lines of a compiler's complaint that say something, cut to a readable length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if "error" in line] or lines
    return " | ".join(line[:300] for line in wanted[:count])
