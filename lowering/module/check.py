"""Compiled against torch: whole models by their logits, single linears against float64."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from trinity.lowering.graph.annotate import function_name
from trinity.lowering.graph.operators.linear import packed_linear_of
from trinity.lowering.graph.stand_ins import replaced
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.module.compile import compile_text, target_text
from trinity.lowering.module.invoke import CompiledModel, Loaded
from trinity.lowering.rows.linalg import linear_function
from trinity.lowering.rows.row_storage import layout_of
from trinity.lowering.targets.choose import linear_code, storage_of
from trinity.lowering.targets.targets import Target
from trinity.methods.errors import ConfigError, LoweringError
from trinity.methods.formats import CompressedWeight, InputFormat, WeightFormat, format_of

# Sums run in another order than torch's: float32 leaves about 1e-6 a layer, and a wrong formula
# some thousand times that. Half precision rounds every activation, in other places than torch does.
# Logits are compared in the norm (`model_error`), products by their largest difference.
MODEL_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Of one product: float32, or for activations of half precision 16 bits of a block's largest.
LAYER_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


@dataclass(frozen=True, eq=False)
class Rounding:
    """What a model rounds while it runs, beside its weights.

    inputs: what products round their inputs to, by layer
    floats: the same model with keys and values as floats, where its own attention rounds them
    """

    inputs: Mapping[str, InputFormat] = field(default_factory=dict)
    floats: nn.Module | None = None


def verify(
    compiled: CompiledModel,
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    ids: Tensor,
    rounding: Rounding | None = None,
) -> dict[str, float]:
    """Compare prefill and token-by-token decoding with torch on the same packed weights.

    ids: int64 [batch, seq], seq >= 2; the second half is decoded.
    -> relative errors of 'prefill' and 'decode'
    LoweringError names the first wrong layer.
    """
    rounding = rounding or Rounding()
    inputs = rounding.inputs
    count = ids.shape[1]
    if count < 2:
        msg = f"verify: {count} tokens are too few; at least one to prefill and one to decode."
        raise ConfigError(msg)
    reference, half = torch_logits(model, weights, ids, inputs), count // 2
    if not bool(reference.isfinite().all()):
        msg = (
            "verify: the model's own logits, in torch, hold NaN or infinity, so there is nothing "
            "to compare a module with. `trinity eval` with the engine torch names the layer."
        )
        raise ConfigError(msg)
    session = compiled.session()
    decoded = [session.prefill(ids[:, :half])]
    decoded += [session.step(tokens) for tokens in ids[:, half:].unbind(1)]
    errors = {
        "prefill": model_error(compiled.logits(ids), reference),
        "decode": model_error(torch.stack(decoded, dim=1), reference[:, half - 1 :]),
    }
    tolerance = allowed(model, weights, ids, rounding)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    rows = [compiled.batch * length for length in compiled.meta["lengths"]]
    if wrong:
        found = ", ".join(f"{name} {error:.1e}" for name, error in wrong.items())
        where = blame(weights, compiled.target, rows, dtype_of(model), inputs)
        msg = (
            f"{where or 'outside the compressed linears (each agrees with float64)'}: compiled "
            f"logits differ from torch by {found} of their norm, where {tolerance:.0e} "
            f"is allowed. The {compiled.target.name} module is not used."
        )
        raise LoweringError(msg)
    if inputs:
        # Logits may differ by much here: one linear of each format is looked at by itself.
        formats = formats_of(weights, inputs)
        alike = {name: weights[name] for name in {f: n for n, f in formats.items()}.values()}
        if where := blame(alike, compiled.target, rows, dtype_of(model), inputs):
            msg = f"{where}: differs from float64. The {compiled.target.name} module is not used."
            raise LoweringError(msg)
    return errors


def allowed(
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    ids: Tensor,
    rounding: Rounding,
) -> float:
    """How far logits may be from torch's.

    Where inputs or caches are rounded, the last bit of a float decides which of two codes it gets,
    and two programs that are both right differ by about what rounding does: by that much they may.
    Every block rounds its keys and values again, so that the two end with roundings that have
    nothing in common, and those differ by a root of 2 more.
    """
    tolerance = MODEL_TOLERANCE[getattr(torch, dtype_of(model))]
    if not any(of.kind for of in rounding.inputs.values()) and rounding.floats is None:
        return tolerance
    exact = {name: of.unrounded for name, of in rounding.inputs.items()}
    without = {name: of for name, of in exact.items() if of is not None}
    rounded = torch_logits(model, weights, ids, rounding.inputs)
    floats = torch_logits(rounding.floats or model, weights, ids, without)
    independent = 1.0 if rounding.floats is None else 2**0.5
    return max(tolerance, independent * model_error(floats, rounded))


def dtype_of(model: nn.Module) -> str:
    """Of a model's float parameters."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return str(dtype).removeprefix("torch.")


def blame(
    weights: Mapping[str, CompressedWeight],
    target: Target,
    counts: list[int],
    dtype: str,
    inputs: Mapping[str, InputFormat] | None = None,
) -> str | None:
    """The first linear whose own module is wrong, in the order of `weights`.

    counts: rows of the inputs that are tried   dtype: of the model
    """
    for layer, weight in weights.items():
        for rows in counts:
            error = linear_error(weight, target, rows, dtype, (inputs or {}).get(layer))
            if not error <= LAYER_TOLERANCE[getattr(torch, dtype)]:
                return f"{layer} ({format_of(weight).label}, {rows} rows, error {error:.1e})"
    return None


def formats_of(
    weights: Mapping[str, CompressedWeight], inputs: Mapping[str, InputFormat]
) -> dict[str, WeightFormat]:
    """Formats of products: of weights, and what their inputs are rounded to."""
    return {
        name: replace(format_of(weight), inputs=inputs.get(name))
        for name, weight in weights.items()
    }


def torch_logits(
    model: nn.Module,
    weights: Mapping[str, CompressedWeight],
    ids: Tensor,
    inputs: Mapping[str, InputFormat] | None = None,
) -> Tensor:
    """Eager torch on packed weights.  ids: int64 [batch, seq] -> float32 [batch, seq, vocab]

    weights: each is asked for when its layer is called, and packed: one is held at a time
    """
    linears = {
        name: ReadLinear(model.get_submodule(name), name, weights, (inputs or {}).get(name))
        for name in weights
    }
    with replaced(model, linears), torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits.float()
    return logits


class ReadLinear(nn.Module):
    """A compressed linear in torch, read and packed anew at every call."""

    def __init__(
        self,
        layer: nn.Module,
        name: str,
        weights: Mapping[str, CompressedWeight],
        inputs: InputFormat | None,
    ) -> None:
        """layer: of the model, for its bias   inputs: what its inputs are rounded to"""
        super().__init__()
        self.layer, self.name, self.weights, self.inputs = layer, name, weights, inputs

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out], the type of x"""
        weight = self.weights[self.name]
        of = replace(format_of(weight), inputs=self.inputs)
        stored = layout_of(of).pack(weight)
        y: Tensor = packed_linear_of(self.layer, self.name, of, stored)(x)
        return y


def linear_error(
    weight: CompressedWeight,
    target: Target,
    rows: int,
    dtype: str = "float32",
    inputs: InputFormat | None = None,
) -> float:
    """Error of one compiled linear against float64, as a part of the largest output.

    dtype: of the model, whose inputs are numbers of that type
    inputs: what they are rounded to, in float64 too
    """
    weight_format = replace(format_of(weight), inputs=inputs)
    module = linear_module(weight_format, target, rows, dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, weight.shape[1], generator=generator)
    x = x.to(getattr(torch, dtype)).float()
    rounded = inputs.rounded(x) if inputs else x
    expected = rounded.double() @ weight.dequantize().double().T
    stored = storage_of(weight_format, target).pack(weight)
    arguments = [module.put(tensor) for tensor in (x, *stored.values())]
    found = module.fetch(module.call(function_name(weight_format, rows), arguments))
    return relative_error(found, expected)


@lru_cache(maxsize=64)
def linear_module(
    weight_format: WeightFormat, target: Target, rows: int, dtype: str = "float32"
) -> Loaded:
    """One linear of a format, compiled by itself; its storage comes as arguments."""
    return Loaded(compile_text(linear_text(weight_format, target, rows, dtype), target), target)


def linear_text(
    weight_format: WeightFormat, target: Target, rows: int, dtype: str = "float32"
) -> str:
    """Stage target of a module with one linear as its public function.  dtype: of the model"""
    return linears_text(weight_format, target, (rows,), dtype)


def linears_text(
    weight_format: WeightFormat, target: Target, counts: Sequence[int], dtype: str = "float32"
) -> str:
    """The same with a public function for each number of rows."""
    codes, functions = [], ""
    for rows in counts:
        name = function_name(weight_format, rows)
        if code := linear_code(name, weight_format, target, rows, dtype):
            codes.append(code)
        else:
            functions += linear_function(name, layout_of(weight_format), rows)
    text = with_kernels(f"module {{\n{functions}}}\n", codes)
    return target_text(text.replace("func.func private", "func.func"), target)


def model_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the differences of logits over the norm of the logits; NaN anywhere gives NaN.

    Not the largest difference: a model that compression has hurt blows rounding up at one position
    of a thousand, in torch as here, by hundreds of times what it is elsewhere.  A formula that is
    wrong at one position only, or for one token of the vocabulary, still stands out.
    """
    norm = expected.double().norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found.double() - expected.double()).norm() / norm)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest absolute expected value; NaN anywhere gives NaN."""
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found.double() - expected.double()).abs().max() / largest)
