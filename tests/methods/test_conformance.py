"""methods/conformance.py: good methods pass, and every kind of bad one is told what it breaks."""

from typing import Any

import pytest
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from trinity.methods import grids, registry
from trinity.methods.conformance import check
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.dense import DENSE
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight, Dense, Unstructured
from trinity.methods.options import PatternOption
from trinity.methods.tensors import masked, pattern_problem


class Options(MethodConfig):
    strength: float = 0.5


class Good:
    """Scales the weight: nobody's method, but a well-behaved one."""

    name = "good"
    paper = "none"
    config: type[MethodConfig] = Options
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: Any) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        if isinstance(current, Adapted):
            raise ConfigError("good: adapters are not scaled.")
        return Dense(current.dequantize() * config.strength)


def result_of(method: object) -> str:
    """All violations as one text."""
    return "\n".join(check(method))


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_built_in_method_conforms(name: str) -> None:
    assert check(registry.get(name)) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gptq", {"group_size": "tensor", "symmetric": True, "precision": "float64"}),
        ("gptq", {"group_size": 8, "group_fit": "static", "act_order": True}),
        ("rtn", {"bits": 3, "group_size": 8, "symmetric": False}),
        ("sparsegpt", {"pattern": "50%", "bits": 4, "group_size": "channel"}),
        ("sparsegpt", {"pattern": "2:4", "bits": 2, "group_size": 8}),
        ("sparsegpt", {"pattern": "0%"}),
        ("rtn", {"bits": 8, "group_size": 12, "ragged": "channel"}),
        ("rtn", {"group_size": "tensor", "scale_dtype": "bfloat16"}),
        ("slim-lora", {"adapter_bits": 4, "adapter_group": 8}),
        ("slim-lora", {"adapter_bits": 3, "adapter_group": 8, "adapter_groups_along": "outputs"}),
        ("slim-lora", {"adapter_pattern": "2:4"}),
        ("slim", {"pattern": "2:4", "adapter_bits": 4, "adapter_group": 8, "quantizer": "absmax"}),
        ("slim", {"pattern": "50%", "quantizer": "slim-quant-o", "objective": "exact"}),
        ("wanda", {"pattern": "50%", "norm": "shifted"}),
        ("wanda", {"pattern": "50%", "threshold": "adaptive"}),
        ("magnitude", {"pattern": "1:4"}),
        ("jsq", {"pattern": "50%"}),
        ("jsq", {"pattern": "4:8", "rho": 0}),
        ("smoothquant", {"inputs": "clipped", "into": "all"}),
        ("optima", {"variant": "reference"}),
        ("l2qer", {"repairs": "all", "rank": 3, "dtype": "float32"}),
        ("slim-quant", {"bits": 2, "objective": "corrected"}),
        ("slim-lora", {"saliency": "mean-abs", "rank": 0.5, "dtype": "bfloat16"}),
        ("slim-lora", {"saliency": "none", "rank": 200}),
        ("slim", {"pattern": "50%", "quantizer": "absmax", "saliency": "none"}),
        ("slim", {"pattern": "4:8", "adapter": "algorithm-2", "saliency": "mean-abs"}),
    ],
    ids=str,
)
def test_built_in_methods_conform_with_other_options_too(
    name: str, options: dict[str, Any]
) -> None:
    assert check(registry.get(name), options=options) == []


def test_gptq_conforms_when_it_searches_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the steps of its search: all are alike, and there are thousands of groups."""
    monkeypatch.setattr(grids, "SHRINK_STEPS", 8)
    options = {"group_size": 8, "act_order": True, "search": "mse", "bits": 3}
    assert check(registry.get("gptq"), options=options) == []


def test_a_good_method_conforms() -> None:
    assert check(Good()) == []


def test_checking_leaves_the_random_generator_where_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check(Good())
    assert torch.equal(torch.rand(3), expected)


def test_a_class_or_something_else_is_no_method() -> None:
    assert check(Good) == ["Good is a class; register an instance of it"]
    assert "lacks attributes of a Method" in result_of(object())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", "Not A Key"),
        ("name", 3),
        ("paper", ""),
        ("config", dict),
        ("needs", "X_NORM"),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_named(attribute: str, value: object) -> None:
    method = Good()
    setattr(method, attribute, value)
    assert result_of(method).startswith(f"{attribute}: {value!r}")


def test_a_config_that_takes_unknown_keys_is_found() -> None:
    class Loose(Options):
        model_config = ConfigDict(frozen=True, extra="ignore")

    method = Good()
    method.config = Loose
    assert "config: accepts unknown keys" in result_of(method)


def test_a_config_that_can_be_changed_is_found() -> None:
    class Soft(Options):
        model_config = ConfigDict(frozen=False, extra="forbid")

    method = Good()
    method.config = Soft
    assert "config: can be changed" in result_of(method)


def test_required_options_are_guessed_or_taken_from_examples_or_asked_for() -> None:
    class Named(MethodConfig):
        share: PatternOption
        strength: float
        mode: str = Field(pattern="^turbo$", examples=["turbo"])

    class Unguessable(MethodConfig):
        strength: float = 1.0
        mode: str = Field(pattern="^turbo$")

    method = Good()
    method.config = Named
    assert check(method) == []
    method.config = Unguessable
    assert "config: no valid options could be guessed" in result_of(method)
    assert check(method, options={"mode": "turbo"}) == []


class Changes(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        W.mul_(0.5)
        return Dense(W.clone())


class ChangesCurrent(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        if isinstance(current, Dense):
            current.values.mul_(0.5)
        return Dense(W * 1)


class ChangesStatistics(Good):
    needs = Statistic.X_NORM

    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        assert stats.x_norm is not None
        stats.x_norm.clamp_(min=1e-3)
        return Dense(W * stats.x_norm)


class Random(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        return Dense(W + torch.randn_like(W))


class OtherShape(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        return Dense(W.T.contiguous())


class NotAWeight(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Any:
        return W


class Raises(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        raise ZeroDivisionError("oops")


class TakesMoreThanItAsked(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        assert stats.H is not None, "no Hessian"
        return Dense(W * 1)


class OnTheDefaultDevice(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        return Dense(W * torch.ones(W.shape[1]))


class Wasteful(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Adapted:
        out, d_in = W.shape
        return Adapted(Dense(W), W.new_zeros(out, d_in), W.new_zeros(d_in, d_in))


class NaNOnZeros(Good):
    """Divides by the size of the weight, so a layer of zeros is refused by the format."""

    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        return Dense(W / W.abs().max())


@pytest.mark.parametrize(
    ("method", "violation"),
    [
        (Changes(), "changed its input W"),
        (ChangesCurrent(), "changed its input current.weight"),
        (ChangesStatistics(), "changed its input x_norm"),
        (Random(), "take a seed in the config"),
        (OtherShape(), "layer has shape"),
        (NotAWeight(), "layer is of type Tensor, not a CompressedWeight"),
        (Raises(), "raised ZeroDivisionError: oops"),
        (TakesMoreThanItAsked(), "raised AssertionError: no Hessian"),
        (OnTheDefaultDevice(), "default device instead of `W.device`"),
        (Wasteful(), "bits per weight, more than 64"),
        (NaNOnZeros(), "all weights zero"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else "",
)
def test_a_compression_that_breaks_the_contract_is_found(method: Good, violation: str) -> None:
    assert violation in result_of(method)


class SaysNothing(Good):
    """Does not report what `compress` refuses."""

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        if problem := pattern_problem((W.shape[0], W.shape[1]), PatternOptions().pattern):
            raise ConfigError(problem)
        return current


class PatternOptions(MethodConfig):
    pattern: PatternOption = Field(default="2:4", validate_default=True)


class CriesWolf(Good):
    """Reports what `compress` does all the same."""

    def problem(self, shape: tuple[int, int], config: Any) -> str | None:
        return "too narrow" if shape[1] < 100 else None


class ProblemIsABool(Good):
    def problem(self, shape: tuple[int, int], config: Any) -> Any:
        return True


class FitsNothing(Good):
    def problem(self, shape: tuple[int, int], config: Any) -> str | None:
        return "never"

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        raise ConfigError("never")


@pytest.mark.parametrize(
    ("method", "violation"),
    [
        (
            SaysNothing(),
            "layer [5, 7], random weights, after float32 and 9 more cases: raised",
        ),
        (CriesWolf(), "`problem` reports one, but the layer was compressed"),
        (ProblemIsABool(), "problem: gave True for [16, 128], expected a text or None"),
        (FitsNothing(), "nothing was tried: `problem` refuses [16, 128], [8, 256]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else "",
)
def test_a_problem_that_disagrees_with_compress_is_found(method: Good, violation: str) -> None:
    assert violation in result_of(method)


class ForgetsItsPattern(Good):
    """Says 2:4 and prunes nothing."""

    class config(MethodConfig):  # noqa: N801  # the contract's name
        pattern: PatternOption = NM(2, 4)
        strength: float = 1.0


class NaNOnOneToken(Good):
    needs = Statistic.HESSIAN

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        return Dense(current.dequantize() * (0.0 if stats.tokens > 1 else float("nan")))


class FailsOnHalf(Good):
    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        return Dense(W @ torch.eye(W.shape[1]))


class RefusesOneToken(Good):
    needs = Statistic.HESSIAN

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        if stats.tokens == 1:
            raise ConfigError("refuses-one-token: one token says nothing; calibrate on more.")
        return Dense(current.dequantize())


@pytest.mark.parametrize(
    ("method", "violation"),
    [
        (ForgetsItsPattern(), "pattern 2:4 was asked for, the result is float32"),
        (NaNOnOneToken(), "one calibration token, after float32 and 17 more cases: raised"),
        (FailsOnHalf(), "bfloat16 weights, after bfloat16"),
        (FailsOnHalf(), ", float16 weights, after float16"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else "",
)
def test_a_failure_on_the_list_of_numerics_is_found(method: Good, violation: str) -> None:
    assert violation in result_of(method)


def test_a_clear_refusal_of_a_numerically_hopeless_layer_conforms() -> None:
    assert check(RefusesOneToken()) == []


def test_dense_conforms_though_it_hands_back_what_it_was_given() -> None:
    assert check(DENSE) == []


def test_a_violation_is_told_once_with_the_number_of_cases() -> None:
    (found,) = check(NotAWeight())
    assert found.startswith("layer [16, 128], random weights, after float32 and ")
    assert found.endswith(" more cases: layer is of type Tensor, not a CompressedWeight")


class EndsTheProcess(Good):
    def compress(self, W: Tensor, current: Any, stats: LayerStats, config: Any) -> Dense:
        raise SystemExit(0)


def test_a_method_that_ends_the_process_is_told() -> None:
    assert "raised SystemExit: 0" in result_of(EndsTheProcess())


class PrunesTooFew(Good):
    """Says 50% and masks a tenth."""

    class config(MethodConfig):  # noqa: N801  # the contract's name
        pattern: PatternOption = Unstructured(0.5)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Any
    ) -> CompressedWeight:
        mask = torch.ones_like(W, dtype=torch.bool)
        mask[:, ::10] = False
        return masked(current, mask, config.pattern, "prunes-too-few")


def test_another_share_than_was_asked_for_is_found() -> None:
    assert "50% was asked for, 10.2% of the weights are zero" in result_of(PrunesTooFew())
