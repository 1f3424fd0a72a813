"""Tables of levels from their definitions, and rounding to them by trying every level."""

from statistics import NormalDist

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP Microscaling Formats 1.0, 5.3.3


def quantiles() -> list[float]:
    """NF4 (QLoRA, appendix E): 8 quantiles above zero, 7 below, and zero, scaled to -1 .. 1."""
    end = 0.9677083  # 1 - (1/32 + 1/30) / 2: the mean of the two halves' tails
    above = [NormalDist().inv_cdf(end - (end - 0.5) * i / 8) for i in range(8)]
    below = [-NormalDist().inv_cdf(end - (end - 0.5) * i / 7) for i in range(7)]
    return sorted(value / above[0] for value in [*above, 0.0, *below])


def small_float(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The number of a sign, an exponent and a mantissa, subnormal where the exponent is zero."""
    bias = 2 ** (exponent_bits - 1) - 1
    mantissa = code % 2**mantissa_bits
    exponent = code // 2**mantissa_bits % 2**exponent_bits
    sign = -1.0 if code // 2 ** (mantissa_bits + exponent_bits) else 1.0
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (2**mantissa_bits + mantissa) * 2.0 ** (exponent - bias - mantissa_bits)


def e4m3() -> list[float]:
    """All numbers of FP8 E4M3, without the two bit patterns that are NaN."""
    return [small_float(code, 4, 3) for code in range(256) if code % 128 != 127]


def distance(w: float, scale: float, levels: list[float]) -> float:
    """From w to the nearest `scale * level`, found by trying every level."""
    return min(abs(scale * level - w) for level in levels)
